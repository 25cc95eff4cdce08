"""`quantize_artifact`: converts an artifact, measures the result, and writes it or refuses."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import onnx

from sigcam.convert.quantize.calibrate import Method, Ranges, calibrate
from sigcam.convert.quantize.fidelity import FidelityCheck
from sigcam.convert.quantize.float16 import to_half_storage
from sigcam.convert.quantize.images import Chosen, choose, feeds
from sigcam.convert.quantize.int8 import Activations, to_int8
from sigcam.convert.quantize.int8_head import quantize_sigmoid_head
from sigcam.convert.quantize.layer_errors import LayerError, correct_biases, rank_layers
from sigcam.convert.quantize.selection import Selection, maker_of, select
from sigcam.convert.quantize.source import Source, read_source
from sigcam.core.annotations import check_fields, checked
from sigcam.core.artifact import head_path, read_spec, with_spec
from sigcam.core.errors import FidelityError, UsageError
from sigcam.core.files import atomic_path, check_writable, write_bytes
from sigcam.core.inputs import inputs_kept, refuse_input
from sigcam.core.model_file import ModelFile
from sigcam.core.progress import reporter
from sigcam.core.scratch import scratch_folder
from sigcam.core.spec import FidelityReport, QuantizedPrecision, Spec
from sigcam.runtime.head_graph import find_head_graph

Say = Callable[[str], None]

_RANKED_ON = 8
"""Calibration images that layers are ranked on: their order hardly changes with more."""

_CORRECTED_ON = 32
"""Calibration images that biases are corrected on: means of many positions each."""

_NAMED = 5
"""How many of the layers with the largest rounding errors a refusal names."""


@dataclass(frozen=True)
class QuantizeOptions:
    """How an artifact is converted.

    Attributes:
        precision: "int8": what leads to the logits computes in 8 bits; "int8-head": the sigmoid
            branch's large matrices are stored in 8 bits; "fp16", "bf16": all weights are
            stored in 16 bits.
        calibration: number of images that the ranges of int8 are taken from.
        held_out: number of further images, that the result is measured on.
        method: how a range follows from the values, see `calibrate.Method`; int8 only.
        activations: type of rounded values, "int8" for TensorRT; int8 only.
        wide_weights: whether all weights have 8 bits instead of 7, see int8.py; int8 only.
        keep_float: layers that stay in float32 whatever they cost; int8 only.
        rounds: how often further layers may be kept in float32 before giving up; int8 only.
        min_agreement: smallest share of equal predictions, 0 to 1.
        min_correlation: smallest mean correlation of the CAMs, -1 to 1.
        threads: threads of the backend; None leaves it to the backend.
        seed: what the shuffle that chooses the images is seeded with.

    Raises:
        UsageError: a number out of range, or options that contradict the precision.

    >>> QuantizeOptions("fp16", held_out=256).min_agreement
    0.99
    """

    precision: QuantizedPrecision = "int8"
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
        check_fields(self)
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


@checked
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
        path: the float32 artifact.
        data: folder of images of the kind that the model will see.
        out: the new artifact's file; written whole or not at all.
        options: how it is converted; `QuantizeOptions()` when None.
        head: the artifact's head graph; None for `model.head.onnx` beside `model.onnx`. It
            stays in float32, and is copied beside `out` under the name that belongs to it.
        progress: whether bars are drawn on standard error.
        say: called with a line for each step.

    Returns:
        The new artifact's spec, and the files that were written.

    Raises:
        UsageError: a file that can't be converted, or options that contradict it or each other.
        ArtifactError: the file isn't a usable artifact or not what was written, or `head` isn't
            there.
        DataError: too few usable images, or images that say nothing of a layer's range.
        FidelityError: the result differs by more than the limits; nothing is written.
        ExportError: the graph can't be converted.
        BackendError: the backend failed.
        StorageError: a file can't be written.

    Example:
        spec, written = quantize_artifact(
            "model.onnx", "images/", "model-int8.onnx", QuantizeOptions(precision="int8")
        )
        print(spec.fidelity.described())
    """
    options, out, path = options or QuantizeOptions(), Path(out), Path(path)
    with inputs_kept(path, *([] if head is None else [head])):
        return _quantized(path, Path(data), out, options, head, progress, say or _silent)


def _quantized(
    path: Path,
    data: Path,
    out: Path,
    options: QuantizeOptions,
    head: str | Path | None,
    progress: bool,
    say: Say,
) -> tuple[Spec, list[Path]]:
    source = read_source(path)
    if out.suffix != ".onnx":
        raise UsageError(f"the new artifact's name must end in .onnx, got {out.name}")
    check_writable(out)
    heads = _heads(source, out, head)
    with scratch_folder("quantize") as folder:
        conversion = _Conversion(source, data, options, folder, progress, say)
        for place in (out, *(here for _, here in heads)):
            refuse_input(place)  # the images are known by now
        model, fidelity = conversion.run()
    spec = dataclasses.replace(source.spec, fidelity=fidelity)
    write_bytes(out, with_spec(model, spec))
    written = [out]
    for there, here in heads:
        with atomic_path(here) as temporary:
            shutil.copyfile(there, temporary)
        written.append(here)
    return read_spec(out), written


def _silent(text: str) -> None:
    del text


def _heads(source: Source, out: Path, given: str | Path | None) -> list[tuple[Path, Path]]:
    """Returns the head graph's file and the one that it is to be copied to, if there is any."""
    if source.spec.head_input is None:
        if given is not None:
            raise UsageError(f"{source.path} was exported without a head graph")
        return []
    file = find_head_graph(ModelFile(source.path), given)
    if file is None:
        return []
    found = file.path or Path()
    if file.has_external_data:
        raise UsageError(
            f"{found} has its weights in a file beside it; move it away, and pass it to "
            "`sigcam explain` with --head instead"
        )
    check_writable(head_path(out))
    return [(found, head_path(out))]


def _stored(
    source: Source, precision: QuantizedPrecision
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Stores weights in fewer bits; returns the model, and the names of those in float32."""
    if precision == "int8-head":
        return quantize_sigmoid_head(source.model, source.spec.branch), ()
    return to_half_storage(source, "fp16" if precision == "fp16" else "bf16")


class _Conversion:
    """The conversion of one artifact: its images, its fidelity check, and the rounds of int8."""

    def __init__(
        self, source: Source, data: Path, options: QuantizeOptions, folder: Path,
        progress: bool, say: Say,
    ) -> None:  # fmt: skip
        self._source, self._options, self._say = source, options, say
        self._candidate, self._progress = folder / "candidate.onnx", progress
        is_int8 = options.precision == "int8"
        # Both refuse before the long steps: unknown names, or nothing to convert.
        if is_int8:
            select(source, options.keep_float)
        else:
            self._stored = _stored(source, options.precision)
        say(f"choosing images from {data}")
        self._chosen: Chosen = choose(
            data,
            source.spec.preprocessing,
            options.calibration if is_int8 else 0,
            options.held_out,
            options.seed,
            reporter(progress, "choose"),
        )
        for reason in (*self._chosen.left_out, *self._chosen.unread):
            say(f"left out: {reason}")
        say(f"running float32 on {options.held_out} held-out images")
        self._check = FidelityCheck(
            source.path, source.spec, self._chosen.held_out, options.threads,
            reporter(progress, "float32"),
        )  # fmt: skip

    def run(self) -> tuple[onnx.ModelProto, FidelityReport]:
        """Returns a model within the limits, and its fidelity report.

        Raises:
            FidelityError: the model stays below the limits.
        """
        if self._options.precision == "int8":
            return self._int8()
        model, kept = self._stored
        fidelity = self._measured(model, kept)
        if not fidelity.passes:
            raise FidelityError(self._refusal(fidelity, "take fp16 or float32"))
        return model, fidelity

    def _int8(self) -> tuple[onnx.ModelProto, FidelityReport]:
        """Converts to 8 bits, and keeps more layers in float32 until the limits are reached."""
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
                self._say("below the limits: measuring each layer's rounding error")
                ranking = self._ranked(model, kept)
            left = [error for error in ranking if error.layer not in kept]
            more = self._to_keep(left[: math.ceil(len(every.layers) / 10)], kept)
            if round_number == options.rounds or len(kept) + len(more) == len(every.layers):
                break
            kept += more
            self._say(f"round {round_number + 1}: keeping {', '.join(more)} in float32 too")
        worst = ", ".join(f"{error.layer} (by {error.error:.1%})" for error in ranking[:_NAMED])
        advice = (
            f"the layers whose own rounding moves their output most are {worst}; try "
            "--calibration-method percentile, keep further layers with --keep-float, allow more "
            "--rounds, lower the limits, or take fp16"
        )
        raise FidelityError(self._refusal(fidelity, advice))

    def _converted(self, selection: Selection, ranges: Ranges) -> onnx.ModelProto:
        """Converts the selected nodes to 8 bits and corrects their biases."""
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
        """Names layers to keep in float32: these, and those that round the inputs of some.

        A layer's input stays rounded where the convolution before it computes in 8 bits, so that
        one is kept too where most of the layer's error comes from its input.
        """
        names = [error.layer for error in worst]
        for error in worst:
            if error.by_input <= error.by_weight:
                continue
            maker = maker_of(self._source, error.layer)
            if maker is not None and maker not in (*names, *kept):
                names.append(maker)
        return names

    def _ranked(self, model: onnx.ModelProto, kept: Sequence[str]) -> list[LayerError]:
        """Ranks the layers that compute in 8 bits by their rounding errors."""
        count = min(_RANKED_ON, self._options.calibration)
        return rank_layers(
            self._source, model, select(self._source, kept), self._feeds(count), count,
            threads=self._options.threads, report=reporter(self._progress, "layers"),
        )  # fmt: skip

    def _feeds(self, count: int | None = None) -> Iterator[dict[str, Any]]:
        """Yields the graph's inputs for the first calibration images, or for all of them."""
        spec = self._source.spec
        return feeds(self._chosen.calibration[:count], spec.preprocessing)

    def _measured(self, model: onnx.ModelProto, kept: Sequence[str]) -> FidelityReport:
        """Compares a model with float32 on the held-out images."""
        self._candidate.write_bytes(with_spec(model, self._source.spec))
        figures = self._check.compare(self._candidate, reporter(self._progress, "compare"))
        options = self._options
        fidelity = FidelityReport(
            precision=options.precision,
            backend=f"onnxruntime {version_of('onnxruntime')} CPUExecutionProvider",
            images=options.held_out,
            calibration=len(self._chosen.calibration),
            seed=options.seed,
            **dataclasses.asdict(figures),
            min_agreement=options.min_agreement,
            min_correlation=options.min_correlation,
            kept_float=tuple(kept),
        )
        self._say(f"{options.precision}: {fidelity.described()}")
        return fidelity

    def _refusal(self, fidelity: FidelityReport, advice: str) -> str:
        """Says what was wanted, what came, and what to do."""
        return (
            f"{self._source.path} in {fidelity.precision} must agree with float32 on "
            f"{fidelity.min_agreement:.1%} of the held-out images with a mean correlation of "
            f"{fidelity.min_correlation:g}, but reaches {fidelity.described()}; {advice}"
        )
