"""The parity report: the graph against the definitions in float64.

The reference isn't the exported module run again, but `Reference`: `DualBranch` in
float64 and autograd. The class choice is checked first; then everything is compared for
the classes that the graph chose.

The images that a graph is tried on for its parity report, and what came out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.rewrite import in_double
from sigcam.core.errors import ExportError, ParityError
from sigcam.core.spec import OutputError, ParityReport, Preprocessing
from sigcam.core.types import Array
from sigcam.export.options import GraphOptions
from sigcam.export.parity.compare import (
    JUMPING,
    compare,
    errors_of,
    is_unstable,
    worse,
)
from sigcam.export.parity.inputs import (
    INPUTS,
    as_images,
    feed,
    further_images,
    normalised,
    sample_images,
)
from sigcam.export.parity.reference import Reference

BATCHES = ([0], [2, 3, 4], [4, 1, 0, 2, 1, 3, 0, 2])
"""Which of the sample images make the batches of 1, 3 and 8."""

Model = bytes | Path
"""An ONNX model: its bytes, or its file where the weights lie beside it."""


def verify(
    dual: DualBranch,
    data: Model,
    names: Sequence[str],
    options: GraphOptions,
    preprocessing: Preprocessing,
    tolerance: float,
) -> ParityReport:
    """Runs an artifact's graph and compares every output with its definition.

    A gradient can jump: a ReLU whose input lies within rounding of zero may be open on one
    backend and shut on another. So an image on which the graph is outside the tolerance is
    tried again in float64, with the pixels moved by a rounding error of float32 (see
    `is_unstable`). Where the definition itself moves by more than the tolerance, there is
    nothing to compare with, and the image doesn't count; the parity report says how many
    those were. At least three must count; further images are tried until they do.

    Args:
        dual: the model, float32.
        data: the ONNX model.
        names: of the graph's outputs.
        options: of the graph.
        preprocessing: of the images.
        tolerance: largest relative error to accept.

    Raises:
        ParityError: an output is outside `tolerance` or isn't finite.
        ExportError: ONNX Runtime refuses the graph.
    """
    session = _open(data)
    parity_run = ParityRun(in_double(dual).eval(), options, preprocessing, tolerance)
    compared = [name for name in names if name != "head_input"]

    def run(part: Sequence[int]) -> None:
        feeds = {"image": feed(parity_run.images[part], preprocessing)}
        if options.classes.mode == "input":
            feeds["class_ids"] = _test_ids(len(part), dual.num_classes)
        got = _run(session, feeds, list(names))
        logits = np.concatenate([parity_run.known(index).logits.numpy() for index in part])
        _check_choice(got, feeds, logits, options, tolerance)
        for row, index in enumerate(part):
            one = {name: got[name][row : row + 1] for name in compared}
            parity_run.judge(index, one, one["class_ids_out"])

    for part in BATCHES:
        run(part)
    parity_run.try_further(run)
    result = parity_run.report(tuple(len(part) for part in BATCHES))
    if not all(error.max_rel <= tolerance for error in result.outputs.values()):
        raise ParityError(
            f"the graph differs from PyTorch by more than {tolerance:g}; nothing was written\n"
            + table(result)
        )
    parity_run.check_count("the graph")
    return result


def verify_head(
    dual: DualBranch,
    artifact: Model,
    head: Model,
    names: Sequence[str],
    head_input: str,
    options: GraphOptions,
    preprocessing: Preprocessing,
    tolerance: float,
) -> ParityReport:
    """Runs the head graph on what the artifact emits and compares it with the definition.

    Args:
        dual: the model, float32.
        artifact: the ONNX model that feeds it.
        head: the ONNX model to certify.
        names: of its outputs.
        head_input: the artifact's output that it takes.
        options: of the artifact.
        preprocessing: of the images.
        tolerance: largest relative error to accept.

    Raises:
        ParityError: an output is outside `tolerance` or isn't finite.
        ExportError: ONNX Runtime refuses a graph.
    """
    first, second = _open(artifact), _open(head)
    parity_run = ParityRun(in_double(dual).eval(), options, preprocessing, tolerance)
    ids = np.array([[0, dual.num_classes - 1, dual.num_classes // 2]], np.int64)

    def run(part: Sequence[int]) -> None:
        for index in part:
            feeds = {"image": feed(parity_run.images[index : index + 1], preprocessing)}
            if options.classes.mode == "input":
                feeds["class_ids"] = ids
            entry = _run(first, feeds, [head_input])[head_input]
            # Two rows of the same image: the batch must not be fixed either.
            feeds = {head_input: np.repeat(entry, 2, 0), "class_ids": np.repeat(ids, 2, 0)}
            got = {name: value[1:] for name, value in _run(second, feeds, list(names)).items()}
            parity_run.judge(index, got, ids)

    run(range(len(parity_run.images)))
    parity_run.try_further(run)
    result = parity_run.report((2,))
    if not all(error.max_rel <= tolerance for error in result.outputs.values()):
        raise ParityError(
            f"the head graph differs from PyTorch by more than {tolerance:g}; nothing was written\n"
            + table(result)
        )
    parity_run.check_count("the head graph")
    return result


def verify_logits(
    dual: DualBranch, data: Model, preprocessing: Preprocessing, tolerance: float
) -> None:
    """Compares the logits of a bare classifier with PyTorch in float64.

    Raises:
        ParityError: they are outside `tolerance` or not finite.
        ExportError: ONNX Runtime refuses the graph.
    """
    images = sample_images(preprocessing)
    got = _run(_open(data), {"image": feed(images, preprocessing)}, ["logits"])["logits"]
    twin = in_double(dual).eval()
    with torch.no_grad():
        features = twin.features(torch.from_numpy(normalised(images, preprocessing)))
        want = twin.softmax_head(features).numpy()
    error = compare(got, want)
    if not error.max_rel <= tolerance:
        raise ParityError(
            f"the classifier's logits differ from PyTorch's by {error.max_rel:.3g} of their "
            f"largest, more than {tolerance:g}; nothing was written"
        )


def table(parity: ParityReport) -> str:
    """The errors as lines of text, one output a line."""
    width = max(map(len, parity.outputs))
    lines = [f"{'output':{width}}  largest relative  largest absolute"]
    for name, error in parity.outputs.items():
        mark = "" if error.max_rel <= parity.tolerance else "  <- outside tolerance"
        lines.append(f"{name:{width}}  {error.max_rel:16.3g}  {error.max_abs:16.3g}{mark}")
    return "\n".join(lines)


def _open(data: Model) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    source = str(data) if isinstance(data, Path) else data
    try:
        return onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
    except Exception as exc:  # ONNX Runtime's own exceptions share no base
        raise ExportError(f"ONNX Runtime refuses the exported graph: {exc}") from exc


def _run(
    session: onnxruntime.InferenceSession, feeds: dict[str, Array], names: list[str]
) -> dict[str, Array]:
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as exc:  # ONNX Runtime's own exceptions share no base
        batch = len(next(iter(feeds.values())))
        raise ExportError(f"ONNX Runtime fails on a batch of {batch}: {exc}") from exc


def _test_ids(batch: int, num_classes: int) -> Array:
    """Ranks and ids mixed; as many columns as there is room for."""
    ids = [-1, 0, num_classes - 1, -min(2, num_classes)]
    return np.tile(np.array(ids, np.int64), (batch, 1))


def _check_choice(
    got: Mapping[str, Array],
    feeds: Mapping[str, Array],
    logits: Array,
    options: GraphOptions,
    tolerance: float,
) -> None:
    """Two classes may change places where their logits agree within rounding."""
    ids = got["class_ids_out"]
    asked = feeds.get("class_ids")
    if asked is None:
        count = options.classes.k if options.classes.mode == "topk" else 1
        asked = np.tile(-1 - np.arange(count), (len(ids), 1))
    if ids.shape != asked.shape:
        raise ParityError(f"class_ids_out must be {list(asked.shape)}, got {list(ids.shape)}")
    ranked = -np.sort(-logits, axis=1)
    ranks = np.clip(-asked - 1, 0, logits.shape[1] - 1)
    wanted = np.take_along_axis(ranked, ranks, 1)
    chosen = np.take_along_axis(logits, ids, 1)
    # Both logits may be off by the tolerance.
    near = np.abs(wanted - chosen) <= 2 * tolerance * np.abs(logits).max()
    right = np.where(asked < 0, near, ids == asked)
    if not right.all():
        raise ParityError(
            f"the graph chose the classes {ids.tolist()} for the request {asked.tolist()}, "
            f"where PyTorch ranks others first; nothing was written"
        )


LEAST = 3
"""Fewest images that must count."""

FURTHER = 15
"""Most further images that are tried where too many don't count."""


class ParityRun:
    """The images of one parity report and what came out so far."""

    def __init__(
        self,
        twin: DualBranch,
        options: GraphOptions,
        preprocessing: Preprocessing,
        tolerance: float,
    ) -> None:
        self.twin, self.options, self.preprocessing = twin, options, preprocessing
        self.tolerance = tolerance
        self.images: Array = sample_images(preprocessing)
        self.worst: dict[str, OutputError] = {}
        self._known: dict[int, Reference] = {}
        self._unstable: dict[int, bool] = {}
        self._seen: set[int] = set()
        self._empty: set[int] = set()
        self._first = len(self.images)

    def known(self, index: int) -> Reference:
        """What the image should give; made once, as float64 convolutions are slow."""
        if index not in self._known:
            (images,) = as_images(self.images[index : index + 1], self.preprocessing)
            self._known[index] = Reference(self.twin, images, self.options)
        return self._known[index]

    def judge(self, index: int, got: Mapping[str, Array], ids: Array) -> None:
        """Takes in the outputs of one image for the classes `ids` [1, K]."""
        self._seen.add(index)
        classes = torch.from_numpy(ids)
        want = self.known(index).outputs(classes)  # once: it takes the gradients in float64
        if not bool(want["cams"].any()):
            self._empty.add(index)
        errors = errors_of(got, want)
        # NaN is larger than nothing, so it never counts as a jump.
        if any(errors[name].max_rel > self.tolerance for name in errors.keys() & JUMPING):
            if index not in self._unstable:
                at = self.images[index : index + 1]
                self._unstable[index] = is_unstable(
                    self.twin, at, self.preprocessing, self.options, classes, self.tolerance
                )
            if self._unstable[index]:
                errors = {name: error for name, error in errors.items() if name not in JUMPING}
        for name, error in errors.items():
            self.worst[name] = worse(self.worst.get(name, error), error)

    def try_further(self, run: Callable[[Sequence[int]], None]) -> None:
        """Runs one image after the other until enough count, or there are no more."""
        if self._counted() < LEAST:
            more = further_images(self.preprocessing, FURTHER)
            self.images = np.concatenate([self.images, more])
            for index in range(self._first, len(self.images)):
                if self._counted() < LEAST:
                    run([index])

    def report(self, batch_sizes: tuple[int, ...]) -> ParityReport:
        """What came out."""
        added = len(self._seen) - self._first
        return ParityReport(
            reference=f"torch {torch.__version__} float64",
            backend=f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider",
            tolerance=self.tolerance,
            batch_sizes=batch_sizes,
            inputs=INPUTS + (f"; {added} further smooth random ones" if added else ""),
            outputs=dict(self.worst),
            left_out=sum(self._unstable.values()),
            empty=len(self._empty),
        )

    def check_count(self, what: str) -> None:
        """Refuses a parity report that too few images stand behind."""
        if self._counted() < LEAST:
            seen, left_out = len(self._seen), len(self._seen) - self._counted()
            raise ParityError(
                f"on {left_out} of {seen} images the gradient jumps within rounding by more than "
                f"{self.tolerance:g}, so {what} can't be checked; nothing was written. Name a "
                f"later target layer, or accept a larger tolerance"
            )

    def _counted(self) -> int:
        return len(self._seen) - sum(self._unstable.values())
