"""Finds out what an ONNX graph takes: its input, the layout, the order of the channels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sigcam.classifier.onnx.preprocessing import Front, find_front
from sigcam.core.errors import ModelError
from sigcam.core.spec import ChannelOrder

if TYPE_CHECKING:
    import onnx

_MOST_CHANNELS = 16
"""An axis longer than that isn't taken for the channels."""
_USUAL = (1, 3, 4)
"""Numbers of channels that win where both axes are short."""
_FLOATS = (1, 10, 11, 16)
_UINT8 = 2


@dataclass(frozen=True)
class Input:
    """What a graph takes.

    Attributes:
        name: the input's name.
        nhwc: whether the channels come last.
        channels: their number.
        height, width: in pixels; None where the graph leaves them open.
        one_image: whether the batch is fixed to 1.
        element: the input's type, as ONNX numbers them.
        front: what the graph's first nodes and its metadata say of its preprocessing.
        order: the order in which the graph takes three channels.
    """

    name: str
    nhwc: bool
    channels: int
    height: int | None
    width: int | None
    one_image: bool
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
    def is_bytes(self) -> bool:
        """Returns whether the graph takes uint8."""
        return self.element == _UINT8


def find_input(model: onnx.ModelProto, where: str, order: ChannelOrder | None = None) -> Input:
    """Finds the images among a graph's inputs.

    Args:
        model: the graph.
        where: the file's name, for messages.
        order: the order of the channels; None for what the file says, or RGB.

    Raises:
        ModelError: no input, or several, of the form of images; or a batch fixed to several.
    """
    stored = {t.name: t for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in stored]
    shapes = {i.name: _dims(i) for i in inputs}
    listed = ", ".join(f"{n} {s}" for n, s in shapes.items()) or "none"
    if len(inputs) != 1 or len(next(iter(shapes.values()))) != 4:
        raise ModelError(
            f"{where} must have one input of images, [B, C, H, W] or [B, H, W, C], it has "
            f"{listed}; give an image classifier"
        )
    value = inputs[0]
    element, dims = value.type.tensor_type.elem_type, shapes[value.name]
    if element not in (*_FLOATS, _UINT8):
        raise ModelError(
            f"the input {value.name} of {where} must be floating or uint8, it has ONNX's type "
            f"{element}; export the model with such an input"
        )
    batch = dims[0]
    if isinstance(batch, int) and batch != 1:
        raise ModelError(
            f"the input {value.name} of {where} must take any number of images, or one, it takes "
            f"{batch}; export the model with a dynamic batch"
        )
    nhwc = _is_channels(dims[3]) and not (
        dims[1] in _USUAL or (_is_channels(dims[1]) and dims[3] not in _USUAL)
    )
    channels = dims[3] if nhwc else dims[1]
    if not isinstance(channels, int):
        channels = _channels_of_first_conv(model, stored)
    size = [n if isinstance(n, int) else None for n in (dims[1:3] if nhwc else dims[2:4])]
    front = find_front(model, value.name, nhwc)
    order = order or front.order or "rgb"
    return Input(
        value.name, nhwc, channels, size[0], size[1], batch == 1, element, front, order
    )  # fmt: skip


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else d.dim_param or "?"
        for d in value.type.tensor_type.shape.dim
    ]


def _is_channels(size: int | str) -> bool:
    return isinstance(size, int) and size <= _MOST_CHANNELS


def _channels_of_first_conv(model: onnx.ModelProto, stored: dict[str, Any]) -> int:
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[1] in stored:
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            return int(stored[node.input[1]].dims[1]) * group
    return 3
