"""Finds out what an ONNX graph takes: its input, the layout, the order of the channels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sigcam.classifier.onnx.preprocessing import Front, find_front
from sigcam.classifier.onnx.values import FLOATS, Dims, described, dims_of, element_name
from sigcam.core.errors import ModelError
from sigcam.core.spec import ChannelOrder

if TYPE_CHECKING:
    import onnx

_MOST_CHANNELS = 16
"""An axis longer than that isn't taken for the channels."""
_USUAL = (1, 3, 4)
"""Numbers of channels that win where both axes are short."""
_UINT8 = 2
_TO_NCHW, _TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]
_POINTWISE = {
    "Cast", "Identity", "Add", "Sub", "Mul", "Div", "Clip", "Gather", "Slice", "Pad",
    "BatchNormalization", "QuantizeLinear", "DequantizeLinear",
}  # fmt: skip
"""What leaves the axes where they are."""


@dataclass(frozen=True)
class Input:
    """What a graph takes.

    Attributes:
        name: the input's name.
        nhwc: whether the channels come last.
        channels: their number.
        height, width: in pixels; None where the graph leaves them open.
        batch: the number of images that it is fixed to; None for any.
        element: the input's type, as ONNX numbers them.
        front: what the graph's first nodes and its metadata say of its preprocessing.
        order: the order in which the graph takes three channels.
    """

    name: str
    nhwc: bool
    channels: int
    height: int | None
    width: int | None
    batch: int | None
    element: int
    front: Front = field(default_factory=Front)
    order: ChannelOrder = "rgb"

    @property
    def range(self) -> int | None:
        """Returns the largest pixel value, 1 or 255, that the graph's own normalisation takes.

        None where nothing in front normalises.
        """
        return self.front.limit

    @property
    def one_image(self) -> bool:
        """Returns whether the batch is fixed to 1."""
        return self.batch == 1

    @property
    def is_bytes(self) -> bool:
        """Returns whether the graph takes uint8."""
        return self.element == _UINT8

    @property
    def dynamic(self) -> Input:
        """Returns the same for a graph whose batch was made dynamic."""
        return replace(self, batch=None)


def find_input(model: onnx.ModelProto, where: str, order: ChannelOrder | None = None) -> Input:
    """Finds the images among a graph's inputs.

    Args:
        model: the graph.
        where: the file's name, for messages.
        order: the order of the channels; None for what the file says, or RGB.

    Raises:
        ModelError: no input, or several, of the form of images.
    """
    value = _only_images(model, where)
    dims = dims_of(value) or []
    element, batch = value.type.tensor_type.elem_type, dims[0]
    if element not in (*FLOATS, _UINT8):
        raise ModelError(
            f"the input {value.name} of {where} must be floating or uint8, it is "
            f"{element_name(element)}; export the model with such an input"
        )
    nhwc = _channels_last(model, value.name, dims)
    channels = dims[3] if nhwc else dims[1]
    if not isinstance(channels, int):
        channels = _channels_of_first_conv(model)
    size = [n if isinstance(n, int) else None for n in (dims[1:3] if nhwc else dims[2:4])]
    fixed = batch if isinstance(batch, int) else None
    front = find_front(model, value.name, nhwc)
    order = order or front.order or "rgb"
    return Input(
        value.name, nhwc, channels, size[0], size[1], fixed, element, front, order
    )  # fmt: skip


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Returns the inputs of a graph that aren't stored in it, as those of old files may be."""
    stored = {t.name for t in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in stored]


def _only_images(model: onnx.ModelProto, where: str) -> onnx.ValueInfoProto:
    """Returns the one input, which has the form of images."""
    inputs = inputs_of(model)
    images = [i for i in inputs if len(dims_of(i) or ()) == 4]
    if len(inputs) == 1 and images:
        return images[0]
    listed = ", ".join(f"{i.name} ({described(i)})" for i in inputs) or "none"
    advice = "give an image classifier"
    if images:
        others = ", ".join(i.name for i in inputs if i is not images[0])
        advice = f"make {others} a constant of the graph (an initializer), or export it without"
    raise ModelError(
        f"{where} must have one input of images, [B, C, H, W] or [B, H, W, C], it has {listed}; "
        f"{advice}"
    )


def _channels_last(model: onnx.ModelProto, name: str, dims: Dims) -> bool:
    """Returns whether the channels come last: what the first nodes say, else the shape."""
    seen, stored = {name}, {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if not seen.intersection(node.input):
            continue
        if node.op_type == "Transpose":
            perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
            if perm in (_TO_NCHW, _TO_NHWC):
                return perm == _TO_NCHW
            break
        if node.op_type == "Conv" and len(node.input) > 1 and node.input[1] in stored:
            channels = _channels_of(node, stored[node.input[1]])
            if dims[1] == channels or not isinstance(dims[1], int):
                return False
            break
        if node.op_type not in _POINTWISE:
            break
        seen.update(node.output)
    return _is_channels(dims[3]) and not (
        dims[1] in _USUAL or (_is_channels(dims[1]) and dims[3] not in _USUAL)
    )


def _is_channels(size: int | str) -> bool:
    return isinstance(size, int) and size <= _MOST_CHANNELS


def _channels_of_first_conv(model: onnx.ModelProto) -> int:
    stored = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) > 1 and node.input[1] in stored:
            return _channels_of(node, stored[node.input[1]])
    return 3


def _channels_of(conv: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    group = next((a.i for a in conv.attribute if a.name == "group"), 1)
    return int(weight.dims[1]) * int(group) if len(weight.dims) > 1 else int(group)
