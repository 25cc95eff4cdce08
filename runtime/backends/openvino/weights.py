"""Weights that several kinds of layers share: each kind gets a copy of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

_CHANNELS = {
    "Convolution": 0,
    "ConvolutionBackpropData": 0,
    "GroupConvolution": 1,
    "GroupConvolutionBackpropData": 1,
    "MatMul": -2,
}
"""The layers with weights, by the first one of the weights' two channel axes."""


class _Use(NamedTuple):
    """One place where a layer takes weights."""

    target: Any
    """The layer's input."""

    kind: tuple[Any, ...]
    """How the layer reads the weights' axes: layers of one kind can share packed weights."""


def separate_weights(model: Any) -> int:
    """Gives each kind of layer a copy of the weights that it shares with another kind.

    A gradient's layers use the weights of the layers that they are the gradient of: a transposed
    convolution those of a convolution, a product with the transposed matrix those of a linear
    layer. OpenVINO's CPU plugin keeps the weights that it has packed under their address and the
    packed shape. It doesn't look at the order in which a layer reads the channel axes, so if
    there are as many inputs as outputs, the second layer gets the first one's packed weights: the
    transposed ones of those that it needs. All values after it are then wrong, without a
    message (seen in 2026.4; on every number of threads, and from an exported model too).

    Args:
        model: an `openvino.Model` before it is compiled. It is changed in place.

    Returns:
        The number of copies made.
    """
    first: dict[Any, tuple[Any, ...]] = {}
    copies: dict[tuple[Any, ...], Any] = {}
    for use in list(_uses(model)):
        source = use.target.get_source_output()
        shared = [root for root in _roots(source) if first.setdefault(root, use.kind) != use.kind]
        if shared:
            key = (_identity(source), use.kind)
            if key not in copies:
                copies[key] = _copy(source, {})
            use.target.replace_source_output(copies[key])
    return len(copies)


def _uses(model: Any) -> Iterator[_Use]:
    """Lists the places where a layer takes constant weights that it could read in two ways."""
    constant: set[str] = set()  # the names of the nodes whose values no input changes
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        values = node.input_values()
        if kind == "Constant" or (values and all(_name(value) in constant for value in values)):
            constant.add(node.get_name())
        elif kind in _CHANNELS:
            for index, value in enumerate(values):
                if _name(value) in constant and _is_square(value.get_shape(), _CHANNELS[kind]):
                    flags = node.get_attributes().values() if kind == "MatMul" else ()
                    # OpenVINO turns a Transpose before a MatMul into one of its flags.
                    yield _Use(node.input(index), (kind, index, *flags, *_types(value)))


def _is_square(shape: Sequence[int], axis: int) -> bool:
    """Tells whether weights stay of the same shape if their channel axes change places."""
    return len(shape) >= 2 and shape[axis] == shape[axis + 1] > 1


def _types(value: Any) -> tuple[str, ...]:
    """Returns the types of the nodes that make a constant value, by its first input each."""
    node = value.get_node()
    inputs = node.input_values()
    return (node.get_type_name(), *(_types(inputs[0]) if inputs else ()))


def _roots(value: Any) -> set[Any]:
    """Returns the names of the constants that a constant value is made of, without scalars."""
    node = value.get_node()
    if node.get_type_name() == "Constant":
        return {_identity(value)} if len(value.get_shape()) >= 2 else set()
    return set().union(*(_roots(source) for source in node.input_values()))


def _identity(value: Any) -> tuple[str, int]:
    return _name(value), value.get_index()


def _name(value: Any) -> str:
    """Returns the name of the node that gives a value; it is unique, unlike the friendly name."""
    name: str = value.get_node().get_name()
    return name


def _copy(value: Any, made: dict[str, Any]) -> Any:
    """Copies a constant value, with the nodes that make it of constants; returns the copy.

    Layers with 8-bit weights need these nodes: a value worked out here would be floating point.

    Args:
        value: an output of a node.
        made: the copies by the names of their nodes, so that a constant is copied once.
    """
    import openvino
    from openvino.utils.node_factory import NodeFactory

    node = value.get_node()
    name = node.get_name()
    if name not in made:
        if node.get_type_name() == "Constant":
            made[name] = openvino.op.Constant(node.get_tensor_view(), shared_memory=False)
        else:
            sources = [_copy(source, made) for source in node.input_values()]
            version = node.get_type_info().version_id
            made[name] = NodeFactory(version).create(
                node.get_type_name(), sources, node.get_attributes()
            )
    return made[name].output(value.get_index())
