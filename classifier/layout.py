"""Finds how a value inside a network holds a spatial grid: its axes, and the tokens before it.

Convolutional networks keep [B, N, h, w]. Swin and others keep [B, h, w, N]. Vision
transformers keep a sequence [B, T, N] whose last h * w tokens are the grid, row by row,
behind prefix tokens (class, distillation and register tokens).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx

from sigcam.classifier.graph import has_batch

Kind = Literal["nchw", "nhwc", "tokens"]

MAX_PREFIX = 16
"""Most prefix tokens that are looked for."""

_aten = torch.ops.aten
# The second axis holds the channels of what these return ...
_CHANNELS_FIRST = {
    "conv2d",
    "convolution",
    "conv_transpose2d",
    "_native_batch_norm_legit_no_training",
    "native_batch_norm",
    "batch_norm",
    "group_norm",
    "native_group_norm",
    "instance_norm",
    "pixel_shuffle",
    "col2im",
    "max_pool2d",
    "max_pool2d_with_indices",
    "_adaptive_avg_pool2d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "avg_pool2d",
}
# ... and the last one of these, where it isn't known from what they take.
_CHANNELS_LAST = {
    "layer_norm",
    "native_layer_norm",
    "rms_norm",
    "_fused_rms_norm",
    "linear",
    "mm",
    "addmm",
}
_POOLS = {"mean", "amax", "sum"}
_RESHAPES = {
    _aten.view.default,
    _aten.reshape.default,
    _aten._unsafe_view.default,
    _aten.flatten.using_ints,
    _aten.unflatten.int,
}
_AXIS = "sigcam_channel_axis"
"""Where a node's channel axis is kept once it is known."""


@dataclass(frozen=True)
class Layout:
    """Tells where the grid is in a value.

    Attributes:
        kind: "nchw": [B, N, h, w]; "nhwc": [B, h, w, N]; "tokens": [B, prefix + h * w, N].
        shape: (N, h, w).
        prefix: how many tokens come before the grid; 0 for the other kinds.

    Example:
        >>> layout = Layout("tokens", (5, 3, 4), prefix=1)  # a class token, then 3x4 others
        >>> layout.value_shape
        (13, 5)
        >>> layout.to_grid(torch.zeros(2, 13, 5)).shape
        torch.Size([2, 5, 3, 4])
    """

    kind: Kind
    shape: tuple[int, int, int]
    prefix: int = 0

    def to_grid(self, value: Tensor) -> Tensor:
        """Returns the value as [B, N, h, w]; a view where that is possible."""
        N, h, w = self.shape
        if self.kind == "nchw":
            return value
        if self.kind == "tokens":
            value = value[:, self.prefix :].reshape(-1, h, w, N)
        return value.permute(0, 3, 1, 2)

    @property
    def value_shape(self) -> tuple[int, ...]:
        """Returns the shape of the value without the batch."""
        N, h, w = self.shape
        return {"nchw": (N, h, w), "nhwc": (h, w, N), "tokens": (self.prefix + h * w, N)}[self.kind]


@dataclass(frozen=True)
class BranchValue:
    """The value where the features of a split end and its heads begin.

    Attributes:
        layer: the name of the layer that returns it. A value that no module returns is
            named "<module>:<operator>" ("forward:relu" for the model's own forward
            function).
        layout: where the grid is in it; None for a value without a grid, such as the joined
            descriptors of several scales, or the mean of two networks' logits.
        node: the name of its node in the features' graph.
    """

    layer: str
    layout: Layout | None
    node: str


@dataclass(frozen=True)
class Value(BranchValue):
    """A value with a grid inside the features of a split."""

    layout: Layout


def layout_of(node: fx.Node, image: fx.Node) -> Layout | None:
    """Returns the layout of a value with more than one position; None if it holds no grid.

    Args:
        node: a value of a traced graph.
        image: the placeholder of the images, whose batch size counts.

    Example:
        >>> from torch import nn
        >>> from sigcam.classifier.trace import trace
        >>> layers = nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)
        >>> traced = trace(nn.Sequential(*layers), torch.zeros(1, 3, 8, 8))
        >>> flat = traced.logits.args[0]
        >>> layout_of(flat.args[0], traced.image), layout_of(flat, traced.image)
        (Layout(kind='nchw', shape=(4, 6, 6), prefix=0), None)
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dtype != torch.float32 or not has_batch(node, image):
        return None
    sizes = value.shape[1:]
    if not all(isinstance(size, int) for size in sizes):
        return None
    axis = channel_axis(node)
    if len(sizes) == 3:
        first, second, third = (int(size) for size in sizes)
        if axis == 1:
            layout = Layout("nchw", (first, second, third))
        elif axis == 3 and _like_image(first, second, image):
            layout = Layout("nhwc", (third, first, second))
        else:
            # Attention's [B, heads, T, d] has four axes too.
            return None
        return layout if layout.shape[1] * layout.shape[2] > 1 else None
    if len(sizes) == 2 and axis == 2:
        return _tokens(node, image, int(sizes[0]), int(sizes[1]))
    return None


def _like_image(h: int, w: int, image: fx.Node) -> bool:
    """Returns whether a grid has the image's proportions, give or take two cells each way.

    What has its channels last may be attention's [B, heads, T, d] rather than a grid.
    """
    H, W = (int(size) for size in image.meta["val"].shape[2:])
    return H * max(w - 2, 0) <= W * (h + 2) and W * max(h - 2, 0) <= H * (w + 2)


def _tokens(node: fx.Node, image: fx.Node, count: int, channels: int) -> Layout | None:
    """Finds the grid of tokens: that of the nearest value before whose positions fit."""
    best: Layout | None = None
    for height, width in _grids_before(node, image):
        prefix = count - height * width
        if 0 <= prefix <= MAX_PREFIX and (best is None or prefix < best.prefix):
            best = Layout("tokens", (channels, height, width), prefix)
    return best


def _grids_before(node: fx.Node, image: fx.Node) -> list[tuple[int, int]]:
    """Lists the sizes of [B, N, h, w] and [B, h, w, N] values before a node, nearest first.

    Attention with a single head has all tokens in one row: [B, 1, T, d] is none of them.
    """
    found: list[tuple[int, int]] = []
    for current in node.graph.nodes:
        if current is node:
            break
        value = current.meta.get("val")
        if not isinstance(value, Tensor) or value.ndim != 4:
            continue
        axis = channel_axis(current)
        sizes = value.shape[2:] if axis == 1 else value.shape[1:3] if axis == 3 else ()
        if len(sizes) != 2 or not all(isinstance(s, int) for s in sizes):
            continue
        h, w = (int(s) for s in sizes)
        if h * w > 1 and (axis == 1 or _like_image(h, w, image)):
            found.append((h, w))
    return list(dict.fromkeys(reversed(found)))


def channel_axis(node: fx.Node) -> int | None:
    """Returns which axis of a value holds its channels; None where that can't be told.

    It follows from the operators that the value came through.

    Args:
        node: a value of a traced graph.

    Example:
        >>> image = fx.Graph().placeholder("image")
        >>> image.meta["val"] = torch.zeros(2, 3, 8, 8)
        >>> channel_axis(image)
        1
    """
    if _AXIS not in node.meta:
        for other in node.graph.nodes:  # in topological order
            if _AXIS not in other.meta:
                other.meta[_AXIS] = _axis(other)
    axis: int | None = node.meta[_AXIS]
    return axis


def _axis(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    if isinstance(value, Tensor) and value.is_complex():
        return None  # a spectrum: its positions are frequencies
    name = operator_name(node)
    if name in _CHANNELS_FIRST or (node.op == "placeholder" and _ndim(node) == 4):
        return 1
    for source in _sources(node):
        before = source.meta[_AXIS]
        found = None if before is None else _moved(node, source, before)
        if found is not None:
            return found
    # With four axes it may as well be a normalisation of attention's [B, heads, T, d].
    shape = _shape(node) or ()
    if name in _CHANNELS_LAST and len(shape) <= 3:
        return len(shape) - 1
    return _read_axis(node) if len(shape) == 4 else None


def _read_axis(node: fx.Node) -> int | None:
    """Returns the channel axis that what reads a value of four axes takes for it.

    Patches that were cut out by reshapes come to a grid in ways that don't tell their channels.
    """
    for user in node.users:
        if not user.args or user.args[0] is not node:
            continue
        if operator_name(user) in _CHANNELS_FIRST:
            return 1
        if operator_name(user) in _POOLS and len(user.args) > 1 and _ndim(node) == 4:
            axes = user.args[1] if isinstance(user.args[1], list | tuple) else [user.args[1]]
            pooled = {int(axis) % 4 for axis in axes}  # type: ignore[arg-type]
            if pooled in ({2, 3}, {1, 2}):
                return 1 if 3 in pooled else 3
    return None


def operator_name(node: fx.Node) -> str:
    """Returns the name of a node's operator without its overload: "conv2d".

    Example:
        >>> image = fx.Graph().placeholder("image")
        >>> operator_name(image.graph.call_function(_aten.relu.default, (image,)))
        'relu'
    """
    return name_of_target(node.target)


def name_of_target(target: object) -> str:
    """Returns the name of an operator, as of what a node calls, without its overload.

    Example:
        >>> name_of_target(_aten.relu.default)
        'relu'
    """
    return str(getattr(target, "__name__", target)).partition(".")[0]


def _sources(node: fx.Node) -> list[fx.Node]:
    """Returns the arguments that are computed from the images: some size of them is dynamic.

    Those of the result's shape come first: a gate may stand before what it scales.
    """
    shape = [str(s) for s in _shape(node) or ()]
    found = [n for n in node.all_input_nodes if _is_dynamic(n)]
    return sorted(found, key=lambda n: [str(s) for s in _shape(n) or ()] != shape)


def _is_dynamic(node: fx.Node) -> bool:
    return any(not isinstance(size, int) for size in _shape(node) or ())


def _moved(node: fx.Node, source: fx.Node, axis: int) -> int | None:
    """Returns where `node` moves the axis of `source`."""
    before, after = _shape(source), _shape(node)
    if before is None or after is None:
        return None
    if node.target is _aten.permute.default:
        order = [int(d) % len(before) for d in node.args[1]]  # type: ignore[union-attr, arg-type]
        return order.index(axis)
    if node.target in (_aten.transpose.int, _aten.t.default):
        i, j = (int(a) % len(before) for a in node.args[1:3]) if len(node.args) > 2 else (0, 1)  # type: ignore[arg-type]
        return {i: j, j: i}.get(axis, axis)
    if node.target in _RESHAPES or len(before) != len(after):
        return _reshaped(before, after, axis)
    return axis


def _reshaped(before: Sequence[object], after: Sequence[object], axis: int) -> int | None:
    """Returns the axis of the same size with as many entries behind it."""
    for found in range(1, len(after)):
        if isinstance(after[found], int) and after[found] == before[axis]:
            sizes = [s for s in (*before[axis:], *after[found:]) if isinstance(s, int)]
            parts = math.prod(sizes[: len(before) - axis]), math.prod(sizes[len(before) - axis :])
            if len(sizes) == len(before) - axis + len(after) - found and parts[0] == parts[1]:
                return found
    return None


def _ndim(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.ndim if isinstance(value, Tensor) else -1


def _shape(node: fx.Node | None) -> Sequence[object] | None:
    value = None if node is None else node.meta.get("val")
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    return tuple(value.shape) if isinstance(value, Tensor) else None
