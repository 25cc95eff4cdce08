"""One ONNX file: read and exported as a user does it, and compared with what is outside of sigcam.

Three comparisons. The output of the artifact with that of the file, and its features with the same
value inside the file, both in ONNX Runtime; and its maps with those of the framework that the
file comes from, or where there is none with differences through the file's own tail.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from benchmarks.coverage.onnx_sources import differences
from benchmarks.coverage.onnx_sources.makers import common
from sigcam import ExportOptions, build_classifier, export_artifact
from sigcam.classifier.build import BuiltClassifier
from sigcam.classifier.layout import Layout
from sigcam.core.errors import ExportError, ParityError, SigcamError

_SQUASHING = {"Softmax", "LogSoftmax", "Sigmoid"}
_PASSING = {"Identity", "Reshape", "Squeeze", "Flatten", "Cast"}
_LEARNT = {"Normalizer", "LinearClassifier"}
_BY_DIFFERENCES = 2
"""So many images are compared with differences, which take long."""


@dataclass
class Outcome:
    """What became of one file.

    Attributes:
        name: of the file.
        status: "agrees": all is within the tolerance; "differs", "refused", "failed".
        reason: of all but "agrees".
        source: the programs that made it.
        opset, nodes: of the file.
        size: of the images.
        layer, layout: the target layer that was found, and (N, h, w).
        methods: those that were exported.
        output: worst error of the logits against the file's, as a share of the largest.
        features: of the features against the file's own value.
        maps: of the CAMs against the reference.
        reference: what the maps were compared with: "framework", "differences", or the "exact
            network" that a file with fewer bits was made of, which gives no error.
        empty: images whose CAM is zero on both sides.
        note: a sentence for the table.
        seconds: of wall time.
    """

    name: str
    status: str = "refused"
    reason: str = ""
    source: str = ""
    opset: int = 0
    nodes: int = 0
    size: tuple[int, int] = (0, 0)
    layer: str = ""
    layout: tuple[int, ...] = ()
    methods: list[str] = field(default_factory=list)
    output: float | None = None
    features: float | None = None
    maps: float | None = None
    reference: str = ""
    empty: int = 0
    note: str = ""
    seconds: float = 0.0


TOLERANCE = 1e-4
_LEAST_PROBABILITY = 1e-36
"""Below, float32 has fewer digits."""


def check(name: str, folder: Path) -> dict[str, Any]:
    """Exports one file and compares it; never raises for a file that fails.

    Args:
        name: of its row.
        folder: with the file and what its maker wrote beside it.
    """
    outcome = Outcome(name)
    start = time.perf_counter()
    try:
        _check(outcome, folder)
    except SigcamError as exc:
        outcome.status = "differs" if isinstance(exc, ParityError) else "refused"
        runs = "" if _runs(folder / common.MODEL) else "; ONNX Runtime refuses the file too"
        outcome.reason = f"{type(exc).__name__}: {exc}{runs}"
    except Exception as exc:  # a fault of ours: the run must go on, the table must show it
        outcome.status, outcome.reason = "failed", f"{type(exc).__name__}: {exc}"
    outcome.reason = " ".join(outcome.reason.replace(str(folder), ".").split())[:600]
    outcome.seconds = round(time.perf_counter() - start, 1)
    return asdict(outcome)


def _check(outcome: Outcome, folder: Path) -> None:
    about = json.loads((folder / common.ABOUT).read_text())
    path = folder / common.MODEL
    outcome.source, outcome.note = about["source"], about["note"]
    outcome.size = tuple(about["size"])
    header = onnx.load(str(path), load_external_data=False)
    outcome.opset = next(o.version for o in header.opset_import if o.domain in ("", "ai.onnx"))
    outcome.nodes = len(header.graph.node)
    arch = str(path) + (f"#{about['output']}" if about["output"] else "")
    built = build_classifier(arch, mean=about["mean"], std=about["std"], size=outcome.size)
    (target,) = built.dual.targets
    outcome.layer, outcome.layout = target.layer, target.layout.shape
    pixels = common.images(*outcome.size, built.dual.channels)
    found = _exported(outcome, built, pixels)
    _compare(outcome, folder, about, built, found, pixels)
    errors = [e for e in (outcome.output, outcome.features, outcome.maps) if e is not None]
    outcome.status = "agrees" if max(errors, default=0.0) <= TOLERANCE else "differs"
    if outcome.status == "differs":
        outcome.reason = f"an error is over the tolerance{outcome.reason}"
    elif outcome.empty >= len(pixels):
        outcome.status, outcome.reason = "empty", "every CAM is zero, which tests nothing"


def _compare(
    outcome: Outcome,
    folder: Path,
    about: dict[str, Any],
    built: BuiltClassifier,
    found: dict[str, Any],
    pixels: Any,
) -> None:
    """Compares what an artifact gives with the file, and with where it comes from."""
    reference = folder / common.REFERENCE
    if about["quantised"]:
        outcome.reference = "exact network"
        outcome.note = _likeness(found, np.load(reference))
        return
    (target,) = built.dual.targets
    file = File(folder / common.MODEL, about["output"], target.layer)
    given = file.input_of(built, pixels)
    outputs, values = file.run(given)
    outcome.output = _error(*_comparable(found["logits"], outputs, built.dual.squashing))
    if values is not None:
        values = _grid(values, target.layout)
        outcome.features = _error(found["features"], values)
    if reference.exists():
        outcome.reference = "framework"
        _compare_with_framework(outcome, found, np.load(reference), values)
    else:
        outcome.reference = "differences"
        _compare_with_differences(outcome, found, file, given, target.layout)


def _exported(outcome: Outcome, built: BuiltClassifier, pixels: Any) -> dict[str, Any]:
    """Writes artifacts of Grad-CAM and of cam, and returns what they give for images."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "explained.onnx"
        options = ExportOptions(method="gradcam", branch="softmax", features=True)
        export_artifact(built, path, options)
        outcome.methods.append("gradcam")
        found = run(path, pixels)
        try:
            export_artifact(built, path, ExportOptions(method="cam", branch="softmax"))
        except ExportError as exc:
            if "global average pooling" not in str(exc):
                raise
            return found
        outcome.methods.append("cam")
        positions = found["features"].shape[2] * found["features"].shape[3]
        error = _error(run(path, pixels)["cams"] / positions, found["cams"])
        if error > TOLERANCE:
            raise ParityError(f"cam and gradcam differ by {error:.1e} behind a pooling")
    return found


def run(path: Path, pixels: Any) -> dict[str, Any]:
    """Runs an artifact on pixels, [B, H, W, C], and returns all outputs by name."""
    session = onnxruntime.InferenceSession(str(path), _quiet(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": pixels}), strict=True))


def _runs(path: Path) -> bool:
    """Returns whether ONNX Runtime opens a file."""
    try:
        onnxruntime.InferenceSession(str(path), _quiet(), providers=["CPUExecutionProvider"])
    except Exception:  # its own errors have no common base
        return False
    return True


def _quiet() -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return options


def _module_name(node: str) -> str:
    return re.sub("[@#:]", "_", node)


class File:
    """The file itself in ONNX Runtime, with the value of a layer as a further output."""

    def __init__(self, path: Path, output: str | None, layer: str) -> None:
        """Finds the value that the node of a layer gives."""
        self.model = onnx.load(str(path))
        if self.model.functions:
            from onnx.inliner import inline_local_functions

            self.model = inline_local_functions(self.model)
        graph = self.model.graph
        self.output = output or _output(graph)
        # The reader puts an underscore behind names that are taken, and in place of characters.
        names = {_module_name(n.name or n.output[0]): n.output[0] for n in graph.node}
        found = [
            names[n] for n in (layer, layer.rstrip("_"), layer.partition(":")[0]) if n in names
        ]
        self.tensor = found[0] if found else None
        stored = {t.name for t in graph.initializer}
        taken = {name for node in graph.node for name in node.input}
        given = [i for i in graph.input if i.name not in stored]
        for unused in (i for i in given if i.name not in taken):  # Keras's export leaves some
            graph.input.remove(unused)
        self.input = next(i for i in given if i.name in taken)

    def input_of(self, built: BuiltClassifier, pixels: Any) -> Any:
        """Returns pixels in the form that the file takes."""
        own = built.preprocessing
        values = (pixels / own.scale - np.asarray(own.mean)) / np.asarray(own.std)
        dims = [d.dim_value for d in self.input.type.tensor_type.shape.dim]
        if dims[3] != built.dual.channels:
            values = values.transpose(0, 3, 1, 2)
        element = onnx.helper.tensor_dtype_to_np_dtype(self.input.type.tensor_type.elem_type)
        values = np.round(values) if element == np.uint8 else values
        return np.ascontiguousarray(values.astype(element))

    def run(self, images: Any) -> tuple[Any, Any]:
        """Returns output and the layer's value of all images."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        wanted = [self.output]
        if self.tensor is not None:
            wanted.append(self.tensor)
            if self.tensor not in {o.name for o in model.graph.output}:
                model.graph.output.add().name = self.tensor
        with tempfile.TemporaryDirectory() as folder:  # models of over 2 GB have no bytes
            path = Path(folder) / "file.onnx"
            onnx.save(model, str(path), save_as_external_data=model.ByteSize() > 2**30)
            session = onnxruntime.InferenceSession(
                str(path), _quiet(), providers=["CPUExecutionProvider"]
            )
            parts = [images]
            if self.input.type.tensor_type.shape.dim[0].dim_value == 1:
                parts = [images[i : i + 1] for i in range(len(images))]
            found = [session.run(wanted, {self.input.name: part}) for part in parts]
        joined = [np.concatenate(values) for values in zip(*found, strict=True)]
        outputs = joined[0].reshape(len(joined[0]), -1)
        return outputs, joined[1] if self.tensor is not None else None

    def logits(self) -> str:
        """Returns the name of the value before a softmax at the end; changes scikit-learn's."""
        makers = {name: node for node in self.model.graph.node for name in node.output}
        name = found = self.output
        while name in makers and makers[name].op_type in _SQUASHING | _PASSING | _LEARNT:
            if makers[name].op_type == "LinearClassifier":  # has the softmax inside
                for attribute in makers[name].attribute:
                    if attribute.name == "post_transform":
                        attribute.s = b"NONE"
                return name
            squashes = makers[name].op_type in _SQUASHING
            name = makers[name].input[0]
            found = name if squashes else found
        return found


def _output(graph: onnx.GraphProto) -> str:
    ranks = {o.name: len(o.type.tensor_type.shape.dim) for o in graph.output}
    return next((n for n, rank in ranks.items() if rank == 2), next(iter(ranks)))


def _comparable(logits: Any, outputs: Any, squashing: str | None) -> tuple[Any, Any]:
    """Returns logits and the file's outputs in a form in which both are of the same kind.

    Probabilities are turned back into logits: those of a softmax up to a constant, which is taken
    off on both sides. Comparing probabilities would hide the errors of small ones.
    """
    if squashing is None:
        return logits, outputs
    outputs = np.asarray(outputs, np.float64)
    if squashing == "sigmoid":
        return logits, np.log(outputs) - np.log1p(-outputs)
    if squashing != "log_softmax" and outputs.min() < _LEAST_PROBABILITY:
        raise ValueError("the file's probabilities are too small to be turned back into logits")
    scores = outputs if squashing == "log_softmax" else np.log(outputs)
    return logits - logits.mean(1, keepdims=True), scores - scores.mean(1, keepdims=True)


def _grid(values: Any, layout: Layout) -> Any:
    """Returns a layer's value as [B, N, h, w]."""
    count, height, width = layout.shape
    if values.ndim == 4 and values.shape[1:] == layout.shape:
        return values
    if values.ndim == 4:
        return values.transpose(0, 3, 1, 2)
    tokens = values[:, values.shape[1] - height * width :]
    return tokens.transpose(0, 2, 1).reshape(-1, count, height, width)


def _error(found: Any, expected: Any) -> float:
    """Returns the largest difference as a share of the largest value."""
    found, expected = np.squeeze(np.asarray(found)), np.squeeze(np.asarray(expected))
    if found.shape != expected.shape:
        raise ValueError(f"{found.shape} and {expected.shape} can't be compared")
    return float(np.abs(found - expected).max() / max(1e-30, np.abs(expected).max()))


def _map_error(outcome: Outcome, found: Any, expected: Any) -> float:
    """Returns the worst error of maps, each as a share of its own largest value."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if not np.any(one) and not np.any(other):
            outcome.empty += 1
            continue
        worst = max(worst, _error(one, other))
    return worst


def _likeness(found: dict[str, Any], reference: Any) -> str:
    """Says how like the maps of a network with fewer bits are to those of the one it was."""
    same = np.argmax(reference["logits"], 1) == found["class_ids_out"][:, 0]
    pairs = zip(found["cams"][same, 0], reference["cams"][same], strict=True)
    likeness = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs if a.any() and b.any()]
    median = f"{np.median(likeness):.4f}" if likeness else "-"
    return (
        f"no errors, as its bits were taken: maps correlate by {median} (median) with those of the "
        f"float32 network, on the {same.sum()} of {len(same)} images with the same class"
    )


def _compare_with_framework(
    outcome: Outcome, found: dict[str, Any], reference: Any, values: Any
) -> None:
    logits = reference["logits"]
    kinds = Counter(np.argmax(logits, 1) == found["class_ids_out"][:, 0])
    if kinds[False]:
        raise ParityError(f"{kinds[False]} images have another class than in the framework")
    if reference["features"].shape != found["features"].shape:
        raise ValueError(
            f"the framework's layer has {reference['features'].shape}, the one found "
            f"{found['features'].shape}"
        )
    error = _error(found["features"], reference["features"])
    outcome.features = max(error, outcome.features or 0.0)
    if outcome.features > TOLERANCE and values is not None and "single" in reference:
        own, file = (_error(v, reference["features"]) for v in (reference["single"], values))
        outcome.reason = (
            f"; from the framework's features in float64 differ the artifact's by {error:.1e}, the "
            f"file's in ONNX Runtime by {file:.1e}, the framework's own in float32 by {own:.1e}"
        )
    outcome.maps = _map_error(outcome, found["cams"][:, 0], reference["cams"])


def _compare_with_differences(
    outcome: Outcome, found: dict[str, Any], file: File, given: Any, layout: Layout
) -> None:
    if file.tensor is None:
        raise ValueError(f"the file has no node of the layer {outcome.layer}")
    tail = differences.Tail(file.model, file.tensor, file.logits())
    _, values = file.run(given[:_BY_DIFFERENCES])
    axis = 1 if values.ndim == 4 and values.shape[1:] == layout.shape else values.ndim - 1
    maps = []
    for i, value in enumerate(values):
        class_id = int(found["class_ids_out"][i, 0])
        weights = differences.weights(tail, value[None], axis, class_id)
        grid = _grid(value[None], layout)[0]
        maps.append(np.maximum(np.tensordot(weights, grid, 1), 0))
    outcome.maps = _map_error(outcome, found["cams"][: len(maps), 0], maps)
    outcome.empty += len(given) - len(maps) if outcome.empty == len(maps) else 0
