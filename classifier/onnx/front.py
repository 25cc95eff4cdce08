"""Finds out what an ONNX graph takes: its input, the layout, and the normalisation in front."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sigcam.classifier.onnx.tensors import array_of, constant_of
from sigcam.core.errors import ModelError

if TYPE_CHECKING:
    import onnx

_MOST_CHANNELS = 16
"""An axis longer than that isn't taken for the channels."""
_USUAL = (1, 3, 4)
"""Numbers of channels that win where both axes are short."""
_FLOATS = (1, 10, 11, 16)
_UINT8 = 2
_RAW = 0.2
"""A network that multiplies its input by less is given pixels up to 255, else up to 1."""
_FAR = 3.0
"""One that takes off more than that without scaling is given pixels up to 255."""


@dataclass(frozen=True)
class Input:
    """What a graph takes.

    Attributes:
        name: the input's name.
        nhwc: whether the channels come last.
        channels: their number.
        height, width: in pixels; None where the graph leaves them open.
        one_image: whether the batch is fixed to 1.
        range: the largest pixel value that the graph's own normalisation is written for, 1 or
            255; None where nothing in front normalises.
        element: the input's type, as ONNX numbers them.
    """

    name: str
    nhwc: bool
    channels: int
    height: int | None
    width: int | None
    one_image: bool
    range: int | None
    element: int

    @property
    def is_bytes(self) -> bool:
        """Returns whether the graph takes uint8."""
        return self.element == _UINT8


def find_input(model: onnx.ModelProto, where: str) -> Input:
    """Finds the images among a graph's inputs.

    Args:
        model: the graph.
        where: the file's name, for messages.

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
    limit = _range(model, value.name, stored)
    return Input(value.name, nhwc, channels, size[0], size[1], batch == 1, limit, element)


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


def _range(model: onnx.ModelProto, name: str, stored: dict[str, Any]) -> int | None:
    """Returns the largest pixel value that the nodes in front expect; None without such nodes."""
    known = {n: array_of(t) for n, t in stored.items() if np.prod(list(t.dims)) <= _MOST_CHANNELS}
    users: dict[str, list[Any]] = {}
    for node in model.graph.node:
        if node.op_type == "Constant":
            known[node.output[0]] = constant_of(node)
        for used in node.input:
            users.setdefault(used, []).append(node)
    factor, shift, found = 1.0, 0.0, False
    while len(users.get(name, [])) == 1:
        node = users[name][0]
        if node.op_type in ("Cast", "Transpose", "Identity"):
            name = node.output[0]
            continue
        step = _affine(node, name, known)
        if step is None:
            break
        factor, shift, found = factor * step[0], shift * step[0] + step[1], True
        name = node.output[0]
    if not found:
        return None
    return 255 if abs(factor) < _RAW or (factor == 1.0 and abs(shift) > _FAR) else 1


def _affine(node: Any, name: str, known: dict[str, Any]) -> tuple[float, float] | None:
    """Returns (a, b) of a node that computes a x + b, as means over the channels."""
    others = [n for n in node.input if n != name]
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.input) != 2:
        return None
    if len(others) != 1 or others[0] not in known:
        return None
    number = float(np.mean(known[others[0]]))
    first = node.input[0] == name
    if node.op_type == "Add":
        return 1.0, number
    if node.op_type == "Mul":
        return number, 0.0
    if node.op_type == "Sub":
        return (1.0, -number) if first else (-1.0, number)
    return (1.0 / number, 0.0) if first and number else None
