"""Checks that a graph can be read: that it is a classifier's, and has a translation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sigcam.classifier.onnx.operators.table import TABLE
from sigcam.core.errors import ModelError, UsageError

if TYPE_CHECKING:
    import onnx

OPSETS = range(7, 23)
"""The versions of ONNX's operators that the table is written for."""

_OWN = ("", "ai.onnx")
_CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}
_DETECTION = {"NonMaxSuppression", "RoiAlign", "MaxRoiPool"}
_STEPS = {"Gradient", "Momentum", "Adam", "Adagrad", "SoftmaxCrossEntropyLoss",
          "NegativeLogLikelihoodLoss"}  # fmt: skip
_LISTED = 6


def check_graph(model: onnx.ModelProto, where: str) -> int:
    """Refuses graphs that hold what the reader has no translation for.

    Args:
        model: the graph, without functions of its own.
        where: the file's name, for messages.

    Returns:
        The version of the operators.

    Raises:
        ModelError: an unknown version, domain or operator, control flow, a detector's operators,
            or what only training needs.
    """
    _refuse_training(model, where)
    nodes = list(model.graph.node)
    found = _named(n for n in nodes if n.op_type in _CONTROL_FLOW and n.domain in _OWN)
    if found:
        raise ModelError(
            f"{where} must be one fixed computation, it has control flow ({found}); export the "
            "model without it, or simplify it with fixed input sizes (onnxsim takes constant "
            "branches out)"
        )
    found = _named(n for n in nodes if n.op_type in _DETECTION and n.domain in _OWN)
    if found:
        raise ModelError(
            f"{where} must be a classifier, it is a detector's graph ({found}); give a classifier"
        )
    found = _named(n for n in nodes if n.domain not in _OWN)
    if found:
        raise ModelError(
            f"{where} must consist of ONNX's own operators, it has others ({found}); export it "
            "anew without fused operators, or give the file from before the optimisation"
        )
    version = _version(model, where)
    found = _named(n for n in nodes if n.op_type not in TABLE and n.op_type != "Constant")
    if found:
        raise ModelError(
            f"{where} has operators that aren't translated ({found}); export the model with "
            "others, or give its PyTorch source as --arch file.py:NAME"
        )
    return version


def chosen_output(model: onnx.ModelProto, name: str | None, where: str) -> str:
    """Returns the name of the output that holds the logits.

    Args:
        model: the graph.
        name: the output that was asked for; None for the only one of the form [B, C].
        where: the file's name, for messages.

    Raises:
        UsageError: there is no such output.
        ModelError: no output is [B, C], or several are and none was named.
    """
    outputs = {o.name: _shape(o) for o in model.graph.output}
    if name is not None:
        if name not in outputs:
            raise UsageError(
                f"{where} has no output {name!r}; it has {', '.join(map(repr, outputs))}"
            )
        return name
    fitting: list[str] = [n for n, shape in outputs.items() if shape is None or _is_matrix(shape)]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(f"{n} {'of unknown shape' if s is None else s}" for n, s in outputs.items())
    if fitting:
        raise ModelError(
            f"{where} must have one output of logits [B, C], it has several that may be it: "
            f"{listed}; name one behind the file: {where}#{fitting[0]}"
        )
    kind = _kind_of(list(outputs.values()))
    raise ModelError(
        f"{where} must be a classifier with an output [B, C], it has {listed}{kind}; give a "
        "classifier, or cut the graph at its logits"
    )


def _kind_of(shapes: list[list[int | str] | None]) -> str:
    ranks = {len(s) for s in shapes if s is not None}
    if 4 in ranks or (3 in ranks and len(ranks) == 1 and len(shapes) == 1):
        return ", as segmentation networks, detectors and feature extractors do"
    return ""


def _is_matrix(shape: list[int | str]) -> bool:
    """Returns whether a shape may be [B, C], also with axes of size 1 behind."""
    return len(shape) == 2 or (len(shape) > 2 and all(n == 1 for n in shape[2:]))


def _shape(value: onnx.ValueInfoProto) -> list[int | str] | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim]


def _refuse_training(model: onnx.ModelProto, where: str) -> None:
    batch_norms = [
        node
        for node in model.graph.node
        if node.op_type == "BatchNormalization"
        and any(a.name == "training_mode" and a.i == 1 for a in node.attribute)
    ]
    found = _named([*batch_norms, *(n for n in model.graph.node if n.op_type in _STEPS)])
    if found or model.training_info:
        raise ModelError(
            f"{where} must be a graph for inference, it has what only training needs "
            f"({found or 'training_info'}); export the model in inference mode (model.eval())"
        )


def _version(model: onnx.ModelProto, where: str) -> int:
    versions = [o.version for o in model.opset_import if o.domain in _OWN]
    if not versions or versions[0] not in OPSETS:
        raise ModelError(
            f"{where} must be of the opsets {OPSETS[0]} to {OPSETS[-1]}, it is of "
            f"{versions[0] if versions else 'none'}; convert it with "
            f"onnx.version_converter.convert_version(model, {OPSETS[-5]})"
        )
    return int(versions[0])


def _named(nodes: Iterable[onnx.NodeProto]) -> str:
    """Lists operators with one node of each, as "Loop at body/1"."""
    first: dict[str, str] = {}
    for node in nodes:
        domain = f"{node.domain}." if node.domain else ""
        first.setdefault(
            domain + node.op_type, node.name or (node.output[0] if node.output else "?")
        )
    texts = [f"{operator} at {name}" for operator, name in first.items()]
    more = f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return ", ".join(texts[:_LISTED]) + more
