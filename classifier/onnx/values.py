"""Says in words what ONNX graphs take and give: types and shapes of values, operators by place."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

Dims = list[int | str]
"""Sizes of axes: a number, the name of one that is open, or "?"."""

FLOATS = (1, 10, 11, 16)
"""ONNX's numbers for float32, float16, float64 and bfloat16."""
HALVES = (10, 16)
"""Those of half precision."""
OWN = ("", "ai.onnx")
"""The names of ONNX's own domain."""
_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    8: "string", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
    14: "complex64", 15: "complex128", 16: "bfloat16",
}  # fmt: skip
_LISTED = 6


def dims_of(value: onnx.ValueInfoProto) -> Dims | None:
    """Returns the sizes of a value's axes; None where the graph doesn't say them."""
    kind = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or not kind.HasField("shape"):
        return None
    return [
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else d.dim_param or "?"
        for d in kind.shape.dim
    ]


def element_name(element: int) -> str:
    """Returns the name of an element type that ONNX has a number for.

    Example:
        >>> element_name(1), element_name(99)
        ('float32', 'type 99')
    """
    return _TYPES.get(element, f"type {element}")


def described(value: onnx.ValueInfoProto) -> str:
    """Says what a value is.

    Example:
        >>> from onnx import helper
        >>> described(helper.make_tensor_value_info("y", 1, ["batch", 10]))
        'float32 [batch, 10]'
    """
    return _typed(value.type)


def _typed(kind: onnx.TypeProto) -> str:
    form = kind.WhichOneof("value")
    if form == "tensor_type":
        tensor = kind.tensor_type
        name = element_name(tensor.elem_type) if tensor.elem_type else "of unknown type"
        if not tensor.HasField("shape"):
            return f"{name}, of unknown shape"
        sizes = [
            str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?"
            for d in tensor.shape.dim
        ]
        return f"{name} [{', '.join(sizes)}]"
    if form == "sequence_type":
        return f"a sequence of {_typed(kind.sequence_type.elem_type)}"
    if form == "map_type":
        key = element_name(kind.map_type.key_type)
        return f"maps from {key} to {_typed(kind.map_type.value_type).removesuffix(' []')}"
    return "of unknown type and shape" if form is None else f"of the type {form}"


def kind_of(node: onnx.NodeProto) -> str:
    """Returns a node's operator, with the domain in front where it isn't ONNX's own."""
    return node.op_type if node.domain in OWN else f"{node.domain}.{node.op_type}"


def place_of(node: onnx.NodeProto) -> str:
    """Returns a node's name, or that of its first output."""
    return node.name or next(iter(node.output), "") or "?"


def placed(nodes: Iterable[onnx.NodeProto]) -> str:
    """Lists operators with one node of each, as "Loop at body/1"."""
    first: dict[str, str] = {}
    for node in nodes:
        first.setdefault(kind_of(node), place_of(node))
    texts = [f"{operator} at {name}" for operator, name in first.items()]
    more = f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return ", ".join(texts[:_LISTED]) + more


def counted(nodes: Iterable[onnx.NodeProto]) -> dict[str, int]:
    """Counts the operators of nodes, the most frequent first."""
    return dict(Counter(kind_of(node) for node in nodes).most_common())


def opset_of(model: onnx.ModelProto) -> int | None:
    """Returns the version of ONNX's own operators; None where the file doesn't say it."""
    return next((int(o.version) for o in model.opset_import if o.domain in OWN), None)


def users_of(graph: onnx.GraphProto) -> defaultdict[str, list[onnx.NodeProto]]:
    """Returns the name of a value to the nodes that take it, each as often as it does."""
    users = defaultdict[str, list["onnx.NodeProto"]](list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    return users


def needed(graph: onnx.GraphProto, output: str, given: str | None = None) -> list[onnx.NodeProto]:
    """Returns the nodes that a value depends on, in the graph's order.

    Args:
        graph: the graph.
        output: the value.
        given: a value that is known, so that the node which makes it isn't needed.
    """
    wanted, found = {output}, []
    for node in reversed(graph.node):
        if given not in node.output and wanted.intersection(node.output):
            wanted.update(node.input)
            found.append(node)
    return found[::-1]
