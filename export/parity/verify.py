"""Verifies exported graphs: each output against its definition in float64.

The definition isn't the exported module run again, but `Reference`: `DualBranch` in
float64 and autograd. The class choice is checked first; then everything is compared for
the classes that the graph chose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.rewrite import in_double
from sigcam.core.cpus import thread_limit
from sigcam.core.errors import ExportError, ParityError
from sigcam.core.spec import ParityReport, Preprocessing
from sigcam.core.types import Array
from sigcam.export.methods import method_of
from sigcam.export.options import ExportOptions
from sigcam.export.parity.compare import compare
from sigcam.export.parity.file import file_errors
from sigcam.export.parity.inputs import feed, normalised, sample_images
from sigcam.export.parity.run import ParityRun

BATCHES = ([0], [2, 3, 4], [4, 1, 0, 2, 1, 3, 0, 2])
"""Which of the sample images make the batches of 1, 3 and 8."""

Model = bytes | Path
"""An ONNX model: its bytes, or its file where the weights lie beside it."""


def verify(run: ParityRun, model: Model, outputs: Sequence[str]) -> ParityReport:
    """Runs an artifact's graph and compares every output with its definition.

    Args:
        run: a fresh run, with the PyTorch model and the options of the graph.
        model: the artifact.
        outputs: names of the graph's outputs.

    Returns:
        The report. Images on which the gradient itself jumps within rounding don't count in
        it (see `ParityRun`); it says how many those were. Of a classifier that was read from an
        ONNX file it has the errors from that file too, as `file_errors` gives them.

    Raises:
        ParityError: an output is outside the tolerance or isn't finite, the graph chose
            other classes than PyTorch, too few images count, or it differs from the file.
        ExportError: ONNX Runtime refuses the graph.

    Example:
        report = verify(ParityRun(dual, options, preprocessing), Path("model.onnx"), outputs)
        print(table(report))
    """
    report, logits = _compared(run, _open(model), outputs)
    if run.model.file_sha256 is None:
        return report
    gradients = method_of(run.options.method).need not in ("rows", "scores")
    return replace(report, file=file_errors(run, logits, gradients=gradients))


def _compared(
    run: ParityRun, session: onnxruntime.InferenceSession, outputs: Sequence[str]
) -> tuple[ParityReport, Array]:
    """Compares with the definition; returns the report, and the logits of images that count.

    The session ends with this: together with those that follow, a large network's takes much
    memory.
    """
    num_classes = run.model.num_classes
    compared = [name for name in outputs if name != "head_input"]

    def run_batch(indices: Sequence[int]) -> None:
        feeds = {"image": feed(run.images[indices], run.preprocessing)}
        if run.options.selection.mode == "input":
            feeds["class_ids"] = _mixed_ids(len(indices), num_classes)
        got = _run(session, feeds, outputs)
        for row, index in enumerate(indices):
            if not _is_chosen(run, index, row, got["class_ids_out"], feeds.get("class_ids")):
                continue
            one = {name: got[name][row : row + 1] for name in compared}
            run.add(index, one, one["class_ids_out"])

    for batch in BATCHES:
        run_batch(batch)
    run.try_further_images(run_batch)
    report = run.report([len(batch) for batch in BATCHES])
    if not _is_within(report):
        _check_influence(run)
    _check_errors(report, "the graph")
    run.check_count("the graph")
    return report, _logits(run, session)


def _logits(run: ParityRun, session: onnxruntime.InferenceSession) -> Array:
    """Runs an artifact on the images that count."""
    images = run.counted_images
    feeds = {"image": feed(images, run.preprocessing)}
    if run.options.selection.mode == "input":
        feeds["class_ids"] = _mixed_ids(len(images), run.model.num_classes)
    return _run(session, feeds, ["logits"])["logits"]


def verify_head(
    run: ParityRun, artifact: Model, head: Model, head_input: str, outputs: Sequence[str]
) -> ParityReport:
    """Runs the head graph on what the artifact emits and compares it with the definition.

    Args:
        run: a fresh run, with the PyTorch model and the options of the artifact.
        artifact: the artifact, which feeds the head graph.
        head: the head graph, which is verified.
        head_input: name of the artifact's output that the head graph takes.
        outputs: names of the head graph's outputs.

    Returns:
        The report, as of `verify`.

    Raises:
        ParityError: an output is outside the tolerance or isn't finite, or too few images
            count.
        ExportError: ONNX Runtime refuses a graph.

    Example:
        run = ParityRun(dual, options, preprocessing)
        report = verify_head(run, artifact, head, "head_input", ["cams", "cam_weights"])
    """
    artifact_session, head_session = _open(artifact), _open(head)
    num_classes = run.model.num_classes
    ids = np.array([[0, num_classes - 1, num_classes // 2]], np.int64)

    def run_images(indices: Sequence[int]) -> None:
        for index in indices:
            feeds = {"image": feed(run.images[index : index + 1], run.preprocessing)}
            if run.options.selection.mode == "input":
                feeds["class_ids"] = ids
            entry = _run(artifact_session, feeds, [head_input])[head_input]
            # Two rows of the same image: the batch must not be fixed either.
            feeds = {head_input: np.repeat(entry, 2, 0), "class_ids": np.repeat(ids, 2, 0)}
            got = _run(head_session, feeds, outputs)
            run.add(index, {name: value[1:] for name, value in got.items()}, ids)

    run_images(range(len(run.images)))
    run.try_further_images(run_images)
    report = run.report([2])
    _check_errors(report, "the head graph")
    run.check_count("the head graph")
    return report


def verify_logits(
    dual: DualBranch, model: Model, preprocessing: Preprocessing, tolerance: float
) -> None:
    """Compares the logits of a bare classifier with PyTorch in float64.

    Args:
        dual: the PyTorch model, float32.
        model: the exported classifier.
        preprocessing: how an image becomes the input.
        tolerance: the largest error to accept, as a share of the largest logit.

    Raises:
        ParityError: the logits are outside the tolerance or not finite.
        ExportError: ONNX Runtime refuses the graph.

    Example:
        verify_logits(dual, Path("classifier.onnx"), preprocessing, tolerance=1e-4)
    """
    images = sample_images(preprocessing)
    got = _run(_open(model), {"image": feed(images, preprocessing)}, ["logits"])["logits"]
    reference = in_double(dual).eval()
    with torch.no_grad():
        features = reference.features(torch.from_numpy(normalised(images, preprocessing)))
        wanted = reference.softmax_head(features).numpy()
    error = compare(got, wanted)
    if not error.max_rel <= tolerance:
        raise ParityError(
            f"the classifier's logits differ from PyTorch's by {error.max_rel:.3g} of their "
            f"largest, more than {tolerance:g}; nothing was written"
        )


def check_choice(
    chosen: Array,
    requested: Array | None,
    logits: Array,
    options: ExportOptions,
    largest: float = 0.0,
) -> None:
    """Checks that a graph chose the classes that it was asked for.

    Two classes may change places where their logits agree within the tolerance.

    Args:
        chosen: the ids that the graph gave, int64 [B, K].
        requested: ids and ranks (-1 the most probable) as the graph got them, int64 [B, K];
            None where the classes are built in.
        logits: the definition's, float64 [B, C].
        options: the class selection and the tolerance count.
        largest: the largest logit of other images, which the tolerance is a share of where it
            is larger.

    Raises:
        ParityError: PyTorch ranks other classes there.

    Example:
        >>> check_choice(np.array([[1]]), None, np.array([[0.5, 2.0]]), ExportOptions())
    """
    if requested is None:
        count = options.selection.k if options.selection.mode == "topk" else 1
        requested = np.tile(-1 - np.arange(count), (len(chosen), 1))
    if chosen.shape != requested.shape:
        raise ParityError(
            f"class_ids_out must be {list(requested.shape)}, got {list(chosen.shape)}"
        )
    ranked = -np.sort(-logits, axis=1)
    ranks = np.clip(-requested - 1, 0, logits.shape[1] - 1)
    wanted_logits = np.take_along_axis(ranked, ranks, 1)
    chosen_logits = np.take_along_axis(logits, chosen, 1)
    # Both logits may be off by the tolerance.
    largest = max(float(np.abs(logits).max()), largest)
    near = np.abs(wanted_logits - chosen_logits) <= 2 * options.tolerance * largest
    right = np.where(requested < 0, near, chosen == requested)
    if not right.all():
        raise ParityError(
            f"the graph chose the classes {chosen.tolist()} for the request {requested.tolist()}, "
            f"where PyTorch ranks others first; nothing was written"
        )


def table(report: ParityReport) -> str:
    """Writes the errors of a report as lines of text, one output a line.

    Example:
        >>> from sigcam.core.spec import OutputError
        >>> outputs = {"cams": OutputError(max_abs=0.5, max_rel=0.25)}
        >>> print(table(ParityReport("torch", "onnxruntime", 1e-4, (1,), "noise", outputs)))
        output  largest relative  largest absolute
        cams              0.25               0.5  <- outside tolerance
    """
    width = max(map(len, report.outputs))
    lines = [f"{'output':{width}}  largest relative  largest absolute"]
    for name, error in report.outputs.items():
        mark = "" if error.max_rel <= report.tolerance else "  <- outside tolerance"
        lines.append(f"{name:{width}}  {error.max_rel:16.3g}  {error.max_abs:16.3g}{mark}")
    return "\n".join(lines)


def _is_chosen(
    run: ParityRun, index: int, row: int, chosen: Array, requested: Array | None
) -> bool:
    """Checks the classes of one row; returns False for an image that doesn't count."""
    if not run.counts(index):
        return False
    asked = None if requested is None else requested[row : row + 1]
    logits = run.reference(index).logits.numpy()
    try:
        check_choice(chosen[row : row + 1], asked, logits, run.options, run.largest_logit)
    except ParityError:
        if run.is_ill_conditioned(index):
            return False
        _check_influence(run)
        raise
    return True


def _is_within(report: ParityReport) -> bool:
    return all(error.max_rel <= report.tolerance for error in report.outputs.values())


def _check_influence(run: ParityRun) -> None:
    influence = run.influence()
    if influence > run.options.tolerance:
        raise ParityError(
            f"the images of a batch must not influence each other, but the model's own logits "
            f"change by {influence:.2g} of the largest with another image beside (batch "
            f"statistics in inference mode, or a mean over the batch); nothing was written. Use "
            f"running statistics (BatchNorm with track_running_stats=True), or statistics of each "
            f"image"
        )


def _check_errors(report: ParityReport, what: str) -> None:
    if not _is_within(report):
        raise ParityError(
            f"{what} differs from PyTorch by more than {report.tolerance:g}; nothing was written\n"
            + table(report)
        )


def _open(model: Model) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = thread_limit() or 0  # 0: as many as it finds best
    # A few images only: threads that wait in a loop would cost more than they save.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = str(model) if isinstance(model, Path) else model
    try:
        return onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
    except Exception as exc:  # ONNX Runtime's own exceptions share no base
        raise ExportError(f"ONNX Runtime refuses the exported graph: {exc}") from exc


def _run(
    session: onnxruntime.InferenceSession, feeds: Mapping[str, Array], outputs: Sequence[str]
) -> dict[str, Array]:
    try:
        return dict(zip(outputs, session.run(list(outputs), dict(feeds)), strict=True))
    except Exception as exc:  # ONNX Runtime's own exceptions share no base
        batch = len(next(iter(feeds.values())))
        raise ExportError(f"ONNX Runtime fails on a batch of {batch}: {exc}") from exc


def _mixed_ids(batch: int, num_classes: int) -> Array:
    """Returns ranks and ids mixed; as many columns as there is room for."""
    ids = [-1, 0, num_classes - 1, -min(2, num_classes)]
    return np.tile(np.array(ids, np.int64), (batch, 1))
