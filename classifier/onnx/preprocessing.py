"""Finds out what an ONNX graph does to its images in front, and what its metadata says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sigcam.classifier.onnx.tensors import array_of, constant_of
from sigcam.classifier.onnx.values import users_of
from sigcam.core.spec import ChannelOrder

if TYPE_CHECKING:
    import onnx

_LONGEST = 16
"""Constants of more elements are no figures of channels."""
_RAW = 0.2
"""A network that multiplies its input by less is given pixels up to 255, else up to 1."""
_FAR = 3.0
"""One that takes off more than that without scaling is given pixels up to 255."""
_IMAGENET = np.array([0.485, 0.456, 0.406])
"""The mean of ImageNet's channels, R, G, B; a mean tells the order where it is nearly that."""
_NEAR = 0.012
_PASSING = ("Cast", "Transpose", "Identity")
_FORMAT, _RANGE = "Image.BitmapPixelFormat", "Image.NominalPixelRange"
"""Keys of ONNX's own metadata for images."""
_ORDERS: dict[str, ChannelOrder] = {"Rgb8": "rgb", "Rgba8": "rgb", "Bgr8": "bgr", "Bgra8": "bgr"}
_RANGES = {
    "NominalRange_0_255": (0.0, 255.0),
    "Normalized_0_1": (0.0, 1.0),
    "Normalized_1_1": (-1.0, 1.0),
}


@dataclass(frozen=True)
class Front:
    """What is known of a graph's preprocessing.

    Attributes:
        nodes: the operators in front that normalise, in their order.
        mean, std: what they take off and divide by, for each channel of the input (one number
            where they are equal), in units of the input's values; empty without such nodes.
        limit: the largest pixel value that they are written for, 1 or 255; None without them.
        turned: whether the graph reverses its channels in front.
        order: the order of the input's channels, where something says it.
        reason: what says it, in words.
        values: smallest and largest value of the input by the file's metadata; None without.
    """

    nodes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    limit: int | None = None
    turned: bool = False
    order: ChannelOrder | None = None
    reason: str = ""
    values: tuple[float, float] | None = None


def find_front(model: onnx.ModelProto, name: str, nhwc: bool) -> Front:
    """Reads the nodes in front of a graph, and its metadata.

    Args:
        model: the graph.
        name: its input.
        nhwc: whether the input's channels come last.
    """
    walked = _walk(model, name, nhwc)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    limit, mean, std = None, np.zeros(0), np.zeros(0)
    if walked.nodes and np.all(walked.factor != 0):
        factor, shift = float(np.mean(walked.factor)), float(np.mean(walked.shift))
        limit = 255 if abs(factor) < _RAW or (factor == 1.0 and abs(shift) > _FAR) else 1
        std = 1 / np.atleast_1d(walked.factor)
        mean = -walked.shift * std
    order, reason = _order(mean, limit, metadata)
    return Front(
        tuple(walked.nodes), tuple(map(float, mean)), tuple(map(float, std)), limit, walked.turned,
        order, reason, _RANGES.get(metadata.get(_RANGE, "")),
    )  # fmt: skip


def _order(
    mean: Any, limit: int | None, metadata: dict[str, str]
) -> tuple[ChannelOrder | None, str]:
    """Returns the order of the channels and what says it; (None, "") where nothing does."""
    if metadata.get(_FORMAT) in _ORDERS:
        return _ORDERS[metadata[_FORMAT]], f"the file's metadata ({_FORMAT})"
    if limit is not None and mean.size == len(_IMAGENET):
        by = f"the mean that the graph takes off ({', '.join(f'{m:g}' for m in mean)})"
        if np.abs(mean / limit - _IMAGENET).max() < _NEAR:
            return "rgb", by
        if np.abs(mean / limit - _IMAGENET[::-1]).max() < _NEAR:
            return "bgr", by
    return None, ""


class _Walked:
    """The nodes that were walked through: a value is factor * image + shift."""

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.factor, self.shift = np.ones(()), np.zeros(())
        self.turned = False

    def take(self, operator: str, factor: Any, shift: Any) -> None:
        """Adds a node that computes factor * value + shift; both of its channels' order."""
        if self.turned:
            factor, shift = _reversed(factor), _reversed(shift)
        self.nodes.append(operator)
        self.factor, self.shift = factor * self.factor, factor * self.shift + shift


def _reversed(figures: Any) -> Any:
    return figures[::-1] if figures.ndim else figures


def _walk(model: onnx.ModelProto, name: str, nhwc: bool) -> _Walked:
    """Goes on from the input while single nodes with known figures follow."""
    known = {
        t.name: array_of(t)
        for t in model.graph.initializer
        if np.prod(list(t.dims)) <= _LONGEST and not t.external_data
    }
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output:
            known[node.output[0]] = constant_of(node)
    users = users_of(model.graph)
    walked, axis = _Walked(), 3 if nhwc else 1
    while len(users[name]) == 1:
        node = users[name][0]
        if node.op_type == "Transpose":
            perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), [3, 2, 1, 0])
            axis = perm.index(axis) if axis in perm else axis
        elif _reverses(node, name, axis, known):
            walked.turned = not walked.turned
        elif node.op_type not in _PASSING:
            step = _affine(node, name, known)
            if step is None:
                break
            walked.take(node.op_type, *step)
        if not node.output:
            break
        name = node.output[0]
    return walked


def _affine(node: Any, name: str, known: dict[str, Any]) -> tuple[Any, Any] | None:
    """Returns (a, b) of a node that computes a x + b, one number or one for each channel."""
    others = [n for n in node.input if n != name]
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.input) != 2:
        return None
    if len(others) != 1 or others[0] not in known:
        return None
    figures: Any = np.asarray(known[others[0]], np.float64).reshape(-1)
    figures = figures.reshape(()) if figures.size == 1 else figures
    none, one = np.zeros_like(figures), np.ones_like(figures)
    first = node.input[0] == name
    if node.op_type == "Add":
        return one, figures
    if node.op_type == "Mul":
        return figures, none
    if node.op_type == "Sub":
        return (one, -figures) if first else (-one, figures)
    return (1 / figures, none) if first and np.all(figures) else None


def _reverses(node: Any, name: str, axis: int, known: dict[str, Any]) -> bool:
    """Returns whether a node reverses the channels: a Gather of 2, 1, 0, or a Slice backwards."""
    attributes = {a.name: a for a in node.attribute}
    inputs = [known.get(n) for n in node.input]
    gathers = node.op_type == "Gather" and len(inputs) == 2 and node.input[0] == name
    if gathers and inputs[1] is not None:
        on = attributes["axis"].i if "axis" in attributes else 0
        places = inputs[1].reshape(-1).tolist()
        return on % 4 == axis and len(places) > 1 and places == list(range(len(places)))[::-1]
    if node.op_type == "Slice" and len(inputs) == 5 and inputs[3] is not None:
        steps, axes = inputs[4], inputs[3].reshape(-1).tolist()
        backwards = steps is not None and steps.reshape(-1).tolist() == [-1]
        return backwards and [a % 4 for a in axes] == [axis]
    return False
