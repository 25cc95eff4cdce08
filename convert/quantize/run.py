"""`quantize_artifact`: convert, measure, and write the file or refuse."""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, get_args

import onnx

from sigcam.convert.quantize.calibrate import Method, Ranges, calibrate
from sigcam.convert.quantize.fidelity import FidelityCheck, Measured
from sigcam.convert.quantize.float16 import to_half_storage
from sigcam.convert.quantize.images import Chosen, choose, feeds
from sigcam.convert.quantize.int8 import Activations, to_int8
from sigcam.convert.quantize.int8_head import quantize_sigmoid_head
from sigcam.convert.quantize.layer_errors import LayerError, correct_biases, rank_layers
from sigcam.convert.quantize.selection import Selection, maker_of, select
from sigcam.convert.quantize.source import Source, read_source
from sigcam.core.artifact import check_belongs, head_path
from sigcam.core.errors import FidelityError, UsageError
from sigcam.core.files import atomic_path, check_writable, write_bytes
from sigcam.core.progress import reporter
from sigcam.core.spec import METADATA_KEY, FidelityReport, Precision, Spec, described

Say = Callable[[str], None]

_RANKED_ON = 8
"""Calibration images that layers are ranked on: their order hardly changes with more."""

_CORRECTED_ON = 32
"""Calibration images that biases are corrected on: means of many positions each."""

_NAMED = 5
"""How many of the layers that hurt a refusal names."""


@dataclass(frozen=True)
class QuantizeOptions:
    """How an artifact is converted.

    Attributes:
        precision: "int8": the way to the logits computes in 8 bits; "int8-head": the sigmoid
            branch's large matrices are stored in 8 bits; "fp16", "bf16": all weights are
            stored in 16 bits.
        calibration: images that the ranges of int8 are taken from.
        held_out: further images, that the result is measured on.
        method: how a range follows from the values, see `calibrate`; int8 only.
        activations: type of rounded values, "int8" for TensorRT; int8 only.
        wide_weights: 8 instead of 7 bits for all weights, see `static.py`; int8 only.
        keep_float: layers that stay in float32 whatever they cost; int8 only.
        rounds: how often further layers may be kept in float32 before giving up; int8 only.
        min_agreement: smallest share of equal predictions, 0 to 1.
        min_correlation: smallest mean correlation of the CAMs, -1 to 1.
        threads: threads of the backend; None leaves it to the backend.
        seed: of the shuffle that chooses the images.
    """

    precision: Precision = "int8"
    calibration: int = 128
    held_out: int = 128
    method: Method = "minmax"
    activations: Activations = "uint8"
    wide_weights: bool = False
    keep_float: Sequence[str] = ()
    rounds: int = 3
    min_agreement: float = 0.99
    min_correlation: float = 0.98
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            names = ", ".join(get_args(Precision))
            raise UsageError(f"precision must be one of {names}, got {self.precision!r}")
        if not 0 <= self.min_agreement <= 1 or not -1 <= self.min_correlation <= 1:
            raise UsageError(
                "min_agreement must be between 0 and 1 and min_correlation between -1 and 1, got "
                f"{self.min_agreement} and {self.min_correlation}"
            )
        if self.rounds < 0:
            raise UsageError(f"rounds must be at least 0, got {self.rounds}")
        own = ("method", "activations", "wide_weights", "keep_float", "rounds")
        defaults = {one.name: one.default for one in dataclasses.fields(self)}
        given = [name for name in own if getattr(self, name) != defaults[name]]
        if self.precision != "int8" and given:
            raise UsageError(
                f"{', '.join(given)} belong to the precision int8, not to {self.precision}"
            )


def quantize_artifact(
    path: str | Path,
    data: str | Path,
    out: str | Path,
    options: QuantizeOptions | None = None,
    *,
    head: str | Path | None = None,
    progress: bool = False,
    say: Say | None = None,
) -> tuple[Spec, list[Path]]:
    """Writes an artifact of another precision, and what it costs into its spec.

    Args:
        path: of the float32 artifact.
        data: folder of images of the kind that the model will see.
        out: of the new artifact; written whole or not at all.
        options: how; `QuantizeOptions()` when None.
        head: the artifact's head graph; None for `model.head.onnx` beside `model.onnx`. It
            stays in float32, and is copied beside `out` under the name that belongs to it.
        progress: whether bars are drawn on standard error.
        say: called with a line for each step.

    Returns:
        The new artifact's spec, and the files that were written.

    Raises:
        UsageError: a file that can't be converted, or options that contradict it or each other.
        ArtifactError: the file isn't a usable artifact, or `head` isn't there.
        DataError: too few usable images, or images that say nothing of a layer's range.
        FidelityError: the result differs by more than the limits; nothing is written.
        ExportError: the graph can't be converted.
        BackendError: the backend failed.
        StorageError: a file can't be written.
    """
    options, out, path = options or QuantizeOptions(), Path(out), Path(path)
    source = read_source(path)
    if out.exists() and out.samefile(path):
        raise UsageError(f"{out} is the model itself; name another file")
    if out.suffix != ".onnx":
        raise UsageError(f"the new artifact's name must end in .onnx, got {out.name}")
    check_writable(out)
    heads = _heads(source, out, head)
    with tempfile.TemporaryDirectory(prefix="sigcam-quantize-") as folder:
        work = _Work(source, Path(data), options, Path(folder), progress, say or _silent)
        model, fidelity = work.converted()
    spec = dataclasses.replace(source.spec, fidelity=fidelity)
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=spec.to_json())
    write_bytes(out, model.SerializeToString())
    written = [out]
    for there, here in heads:
        with atomic_path(here) as temporary:
            shutil.copyfile(there, temporary)
        written.append(here)
    return spec, written


def _silent(text: str) -> None:
    del text


def _heads(source: Source, out: Path, given: str | Path | None) -> list[tuple[Path, Path]]:
    """What is to be copied: the head graph from where it is to where it belongs."""
    if source.spec.head_input is None:
        if given is not None:
            raise UsageError(f"{source.path} was exported without a head graph")
        return []
    found = head_path(source.path) if given is None else Path(given)
    if given is None and not found.is_file():
        return []
    check_belongs(found, source.spec)
    model = onnx.load(str(found), load_external_data=False)
    if any(tensor.external_data for tensor in model.graph.initializer):
        raise UsageError(
            f"{found} has its weights in a file beside it; move it away, and pass it to "
            "`sigcam explain` with --head instead"
        )
    check_writable(head_path(out))
    return [(found, head_path(out))]


def _stored(source: Source, precision: Precision) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The model with weights in fewer bits, and the names of those that stay in float32."""
    if precision == "int8-head":
        return quantize_sigmoid_head(source.model, source.spec.branch), ()
    return to_half_storage(source, "fp16" if precision == "fp16" else "bf16")


class _Work:
    """One conversion: the images, the gate, and the rounds."""

    def __init__(
        self, source: Source, data: Path, options: QuantizeOptions, folder: Path,
        progress: bool, say: Say,
    ) -> None:  # fmt: skip
        self._source, self._options, self._say = source, options, say
        self._staged_file, self._progress = folder / "staged_file.onnx", progress
        is_int8 = options.precision == "int8"
        # Both refuse before the long steps: unknown names, or nothing to convert.
        if is_int8:
            select(source, options.keep_float)
        else:
            self._stored = _stored(source, options.precision)
        say(f"choosing images from {data}")
        self._chosen: Chosen = choose(
            data, source.spec.preprocessing, options.calibration if is_int8 else 0, options.held_out,
            options.seed, reporter(progress, "choose"),
        )  # fmt: skip
        for reason in self._chosen.unread:
            say(f"left out: {reason}")
        say(f"running float32 on {options.held_out} held-out images")
        self._check = FidelityCheck(
            source.path, source.spec, self._chosen.held_out, options.threads,
            reporter(progress, "float32"),
        )  # fmt: skip

    def converted(self) -> tuple[onnx.ModelProto, FidelityReport]:
        """The model within the limits, and its parity report.

        Raises:
            FidelityError: it can't be had.
        """
        if self._options.precision == "int8":
            return self._int8()
        model, kept = self._stored
        fidelity = self._measured(model, kept)
        if not fidelity.passes:
            raise FidelityError(self._refusal(fidelity, "take fp16 or float32"))
        return model, fidelity

    def _int8(self) -> tuple[onnx.ModelProto, FidelityReport]:
        options = self._options
        kept = list(dict.fromkeys(options.keep_float))
        every = select(self._source)
        self._say(f"calibrating {len(every.layers)} layers on {options.calibration} images")
        ranges = calibrate(
            self._source, select(self._source, kept), self._feeds(), options.calibration,
            method=options.method, threads=options.threads,
            report=reporter(self._progress, "calibrate"),
        )  # fmt: skip
        ranking: list[LayerError] = []
        for round_number in range(options.rounds + 1):
            selection = select(self._source, kept)
            model = self._converted(selection, ranges)
            fidelity = self._measured(model, kept)
            if fidelity.passes:
                return model, fidelity
            if not ranking:
                self._say("below the limits: looking for the layers that hurt")
                ranking = self._ranked(model, kept)
            left = [one for one in ranking if one.layer not in kept]
            more = self._to_keep(left[: math.ceil(len(every.layers) / 10)], kept)
            if round_number == options.rounds or len(kept) + len(more) == len(every.layers):
                break
            kept += more
            self._say(f"round {round_number + 1}: keeping {', '.join(more)} in float32 too")
        worst = ", ".join(f"{one.layer} ({one.error:.1%})" for one in ranking[:_NAMED])
        advice = (
            f"the layers that hurt most are {worst}, with the error of each one's own output; try "
            "--calibration-method percentile, keep further layers with --keep-float, allow more "
            "--rounds, lower the limits, or take fp16"
        )
        raise FidelityError(self._refusal(fidelity, advice))

    def _converted(self, selection: Selection, ranges: Ranges) -> onnx.ModelProto:
        options = self._options
        model = to_int8(
            self._source, selection, ranges, options.activations, wide_weights=options.wide_weights
        )
        count = min(_CORRECTED_ON, options.calibration)
        return correct_biases(
            self._source, model, selection, self._feeds(count), count,
            threads=options.threads, report=reporter(self._progress, "biases"),
        )  # fmt: skip

    def _to_keep(self, worst: Sequence[LayerError], kept: Sequence[str]) -> list[str]:
        """These layers, and those that round their inputs where that is what hurts."""
        names = [one.layer for one in worst]
        for one in worst:
            maker = maker_of(self._source, one.layer) if one.by_input > one.by_weight else None
            if maker is not None and maker not in (*names, *kept):
                names.append(maker)
        return names

    def _ranked(self, model: onnx.ModelProto, kept: Sequence[str]) -> list[LayerError]:
        count = min(_RANKED_ON, self._options.calibration)
        return rank_layers(
            self._source, model, select(self._source, kept), self._feeds(count), count,
            threads=self._options.threads, report=reporter(self._progress, "layers"),
        )  # fmt: skip

    def _feeds(self, count: int | None = None) -> Iterator[dict[str, Any]]:
        spec = self._source.spec
        return feeds(self._chosen.calibration[:count], spec.preprocessing, named=False)

    def _measured(self, model: onnx.ModelProto, kept: Sequence[str]) -> FidelityReport:
        self._staged_file.write_bytes(model.SerializeToString())
        found: Measured = self._check.compare(
            self._staged_file, reporter(self._progress, "compare")
        )
        options = self._options
        fidelity = FidelityReport(
            precision=options.precision,
            backend=f"onnxruntime {version_of('onnxruntime')} CPUExecutionProvider",
            images=options.held_out,
            calibration=len(self._chosen.calibration),
            seed=options.seed,
            **dataclasses.asdict(found),
            min_agreement=options.min_agreement,
            min_correlation=options.min_correlation,
            kept_float=tuple(kept),
        )
        self._say(f"{options.precision}: {described(fidelity)}")
        return fidelity

    def _refusal(self, fidelity: FidelityReport, advice: str) -> str:
        return (
            f"{self._source.path} in {fidelity.precision} must agree with float32 on "
            f"{fidelity.min_agreement:.1%} of the held-out images with a mean correlation of "
            f"{fidelity.min_correlation:g}, but reaches {described(fidelity)}; {advice}"
        )
