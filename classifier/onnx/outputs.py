"""Finds the value of an ONNX graph that holds the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sigcam.classifier.onnx.values import FLOATS, Dims, described, dims_of
from sigcam.core.errors import ModelError, UsageError

if TYPE_CHECKING:
    import onnx

_LISTED = 12


def chosen_output(model: onnx.ModelProto, name: str | None, where: str) -> str:
    """Returns the name of the value that holds the logits.

    Args:
        model: the graph.
        name: the value that was asked for, an output or one inside; None for the only output
            of the form [B, C].
        where: the file's name, for messages.

    Raises:
        UsageError: there is no such value.
        ModelError: no output is [B, C], or several are and none was named.
    """
    made = {name for node in model.graph.node for name in node.output}
    outputs = {o.name: o for o in model.graph.output}
    if name is not None:
        if name not in made:
            raise UsageError(
                f"{where} has no output {name!r}, nor a value of that name inside; it has "
                f"{', '.join(map(repr, outputs))}"
            )
        return name
    fitting: list[str] = [n for n, o in outputs.items() if may_be_logits(o)]
    if len(fitting) == 1 and fitting[0] not in made:
        raise ModelError(
            f"{where} must have an output that is computed, nothing in it makes {fitting[0]}; the "
            "file is damaged, copy or export it again"
        )
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(f"{n} ({described(o)})" for n, o in list(outputs.items())[:_LISTED])
    if fitting:
        raise ModelError(
            f"{where} must have one output of logits [B, C], it has several that may be it: "
            f"{listed}; name one behind the file: {where}#{fitting[0]}"
        )
    raise ModelError(
        f"{where} must be a classifier with an output of logits, float32 [B, C], it has "
        f"{listed or 'no output'}{_kind_of(model)}; {_advice(model, where)}"
    )


def may_be_logits(output: onnx.ValueInfoProto) -> bool:
    """Returns whether an output may be floating [B, C], also with axes of size 1 behind.

    One whose type or shape the graph doesn't say may be.
    """
    kind = output.type.WhichOneof("value")
    if kind is None:
        return True
    element = output.type.tensor_type.elem_type
    if kind != "tensor_type" or (element and element not in FLOATS):
        return False
    shape = dims_of(output)
    return shape is None or _is_matrix(shape)


def _is_matrix(shape: Dims) -> bool:
    return len(shape) == 2 or (len(shape) > 2 and all(n == 1 for n in shape[2:]))


def _kind_of(model: onnx.ModelProto) -> str:
    """Says which kinds of networks have such outputs."""
    ranks = {len(dims_of(o) or ()) for o in model.graph.output}
    if 4 in ranks:
        return ", as segmentation networks and feature extractors have"
    if 3 in ranks:
        return ", as detectors and networks that give tokens have"
    return ""


def _advice(model: onnx.ModelProto, where: str) -> str:
    """Names the value before a ZipMap, which holds what its maps hold; else asks for another."""
    for node in model.graph.node:
        if node.op_type == "ZipMap" and node.input:
            return (
                f"name the value that the maps are made of behind the file: {where}#{node.input[0]}"
            )
    return (
        "give a classifier, or name the value inside that holds the logits behind the file: "
        f"{where}#NAME"
    )
