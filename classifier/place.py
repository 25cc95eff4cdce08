"""Checks that a layer's grid lies where the image does.

Shapes don't tell. A forward function may flip, transpose, turn, roll, crop or pad its images
or its features, and Hiera keeps the tokens of a window together: the grid has the right
size, and a map of it shows the wrong place. So some cells of the grid are asked which pixels
they look at, by the gradient of the cell's features with respect to the image.

A deep network's cell looks at most of the image, more or less. What is asked is where its
centre lies, so the convolutions of the copy that is asked keep their central taps alone, and
a token attends to itself alone: sharp attention would make it look at another's place. Each
cell then looks at little more than its own pixels, in any network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.functional import adaptive_avg_pool2d, leaky_relu

from sigcam.classifier.gradients import gradients_of
from sigcam.classifier.graph import ValueRecorder, random_images
from sigcam.classifier.layout import Value, name_of_target, operator_name
from sigcam.classifier.spectrum import is_spectrum
from sigcam.core.errors import ModelError

_COLUMNS = (0, 4, 7, 3, 6, 2, 5, 1)
"""The cells that are asked, one to each eighth of the rows: their eighths of the columns.

Rows and columns are uncorrelated, or a transposed grid would look half right.
"""

_LEAST_FIT = 0.9
"""Smallest correlation of where cells look with where an arrangement puts them."""

_LEAST_FIT_OF_FOUR = 0.75
"""The same of four cells, whose places are noisier: in another order they have 0.5 at most."""

_FOCUSED = 0.6
"""How much of what a cell looks at must be its own (0 to 1) before nothing may fit."""

_VISIBLE = 0.05
"""Below this share of its own, a cell's place can't be told."""

_MOST_CELLS = 1.0
"""Largest distance of a cell from its place, in cells. An odd kernel with a stride of two
moves the grid by half a cell, and convolutions without padding by as much again."""

_FREQUENCIES = "they are frequencies (a Fourier transform comes before)"

_SAME = 1e-6
"""Shares of an axis that differ by less are the same."""

_UNPADDED = 0.2
"""By how much of the grid kernels without padding may move the outermost cells inward, where
all of the image counts."""

_PART = "cover only a part of the image"

_MARGIN = 0.2
"""Largest share of a cell that no cell may look at, at the top and the left."""

_LEAST_SIGHTED = 3
"""Fewest cells that must look at the image where it has as many."""

# These only stop the gradient.
_STEPS = {"detach", "round", "floor", "ceil", "trunc"}

_LEAK = 0.1

_EXTREMES = {"amin", "amax"}
_FEW_TOKENS = 16

_FEW_CELLS, _FEW_IMAGES = 16, 8
"""A grid of so few cells is asked on so many images, as chance is larger there."""

_SOFTMAXES = {"softmax", "_softmax", "_safe_softmax"}
_PRODUCTS = {"matmul", "bmm", "einsum"}
# What may lie between a softmax and the product with the tokens; linear layers mix the heads.
_BETWEEN = {
    "dropout", "view", "_unsafe_view", "reshape", "expand", "permute", "transpose", "clone",
    "contiguous", "unsqueeze", "linear", "to", "_to_copy",
}  # fmt: skip

_TURNS: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "as they are": ((1, 0), (0, 1)),
    "flipped left to right": ((1, 0), (0, -1)),
    "flipped upside down": ((-1, 0), (0, 1)),
    "turned by 180 degrees": ((-1, 0), (0, -1)),
    "transposed": ((0, 1), (1, 0)),
    "transposed along the other diagonal": ((0, -1), (-1, 0)),
    "turned by 90 degrees": ((0, 1), (-1, 0)),
    "turned by 270 degrees": ((0, -1), (1, 0)),
}
"""From a cell's (row, column) to where it looks, both from the centre."""


def check_place(
    features: fx.GraphModule,
    values: Sequence[Value],
    example: Tensor,
    instead: Callable[[str], str] = lambda _: "",
) -> None:
    """Refuses values whose grid isn't the image's, row by row and over all of it.

    A value whose cells can't be told apart by the gradient passes (the network ignores the
    image, or has no derivative). So does one in an order that can't be named where attention to
    tokens of another kind is all that leads there, as in LeViT.

    Args:
        features: images to the branch layer's value.
        values: values in `features`.
        example: float32 [B, c, H, W]; only its shape matters.
        instead: from a refused layer's name to a sentence on what can be named in its place.

    Raises:
        ModelError: a value's positions lie elsewhere; names its layer and what was seen.

    Example:
        check_place(dual.features, targets, torch.zeros(1, 3, 224, 224))
    """
    nodes = {node.name: node for node in features.graph.nodes}
    for value in values:
        if is_spectrum(nodes[value.node]):
            raise _error(value, _FREQUENCIES, instead)
    recorded = [_recorded(features, values, example, own=True)]
    for value in values:
        cells = _cells(*value.layout.shape[1:])
        seen = _seen(*recorded[0], value, cells)
        by_attention = seen is None  # to others alone, perhaps
        if by_attention:
            if len(recorded) == 1:
                recorded.append(_recorded(features, values, example, own=False))
            seen = _seen(*recorded[1], value, cells)
        if seen is None:
            continue
        shape = value.layout.shape[1:]
        found = _misplaced(cells, seen, shape)
        inward = found is not None and _PART in found
        if inward or _has_margin(seen.sum(0), shape):
            cropped = _cropped(features, value, example)
            # Where all of the image counts, kernels without padding moved the cells inward.
            found = cropped or _misplaced(cells, seen, shape, _UNPADDED if inward else 0)
        if found == _MIXED and by_attention:  # which may look anywhere
            continue
        if found is not None:
            raise _error(value, found, instead)


def _error(value: Value, seen: str, instead: Callable[[str], str]) -> ModelError:
    return ModelError(
        f"the positions of the layer {value.layer!r} must lie as the image's do, row by "
        f"row and over all of it, but {seen}; a map of them would show the wrong place. "
        f"Move what moves them out of the model's forward, into the preprocessing of the "
        f"images, or name a layer before it{instead(value.layer)}"
    )


def _recorded(
    features: fx.GraphModule, values: Sequence[Value], example: Tensor, *, own: bool
) -> tuple[ValueRecorder, Tensor]:
    """Runs the copy that is asked on some images; returns it and them."""
    recorder = _CentralTaps(features, {value.node for value in values}, own=own)
    fewest = min(math.prod(value.layout.shape[1:]) for value in values)
    count = _FEW_IMAGES if fewest <= _FEW_CELLS else 1
    images = random_images(features, example, count).requires_grad_()
    with torch.enable_grad():
        recorder.run(images)
    return recorder, images


class _Straight(ValueRecorder):
    """Runs a graph with the gradient passing through steps, as straight-through estimators do.

    Nor does a ReLU stop it: cells that are zero on the images that are asked say nothing else.
    """

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Computes a node's operator."""
        if name_of_target(target) == "relu":
            return leaky_relu(args[0], _LEAK)
        to_bytes = name_of_target(target) == "_to_copy" and kwargs.get("dtype") is torch.uint8
        if name_of_target(target) in _STEPS or (to_bytes and args[0].is_floating_point()):
            return args[0]
        return super().call_function(target, args, kwargs)


class _CentralTaps(_Straight):
    """Runs a graph whose convolutions keep their central taps, as many as their stride.

    Attention is that of each token to itself, and none to tokens of another kind (pooled ones,
    the neighbours of a block).
    """

    def __init__(self, module: fx.GraphModule, names: set[str], *, own: bool) -> None:
        """Prepares a run.

        Args:
            module: what is run.
            names: names of nodes whose values are kept.
            own: whether attention is changed so; if not, it is left as it is.
        """
        super().__init__(module, names)
        self.own = own

    def run_node(self, node: fx.Node) -> object:
        """Computes a node."""
        value = super().run_node(node)
        if self.own and isinstance(value, Tensor) and _is_attention(node):
            return _own_attention(value)
        return value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Computes a node's operator."""
        name = name_of_target(target)
        if name == "conv2d":
            args = (args[0], _central(args[1], args[3] if len(args) > 3 else 1), *args[2:])
        if name == "_native_batch_norm_legit_no_training":
            args = (args[0], *args[1:3], *_statistics(args[0]), *args[5:])
        if self.own and name == "scaled_dot_product_attention":
            return _attended(args[0], args[2])
        found = super().call_function(target, args, kwargs)
        # The darkest pixel of an image may count for every cell, and more than its own pixels.
        # Where a cell is the largest of a few tokens, as in Hiera, it looks at one of them.
        if name in _EXTREMES and args[0].numel() > _FEW_TOKENS * found.numel():
            return found.detach()
        return found


def _is_attention(node: fx.Node) -> bool:
    """Returns whether a node is a softmax whose values are weights of a product with tokens."""
    if operator_name(node) not in _SOFTMAXES:
        return False
    waiting = list(node.users)
    seen = set(waiting)
    while waiting:
        user = waiting.pop()
        if operator_name(user) in _PRODUCTS:
            return True
        if operator_name(user) in _BETWEEN:
            waiting += [one for one in user.users if one not in seen]
            seen.update(user.users)
    return False


def _own_attention(weights: Tensor) -> Tensor:
    """Returns weights [..., L, S] of each token for itself; none if L isn't S."""
    L, S = weights.shape[-2:]
    if L != S:
        return torch.zeros_like(weights)
    return torch.eye(L, dtype=weights.dtype, device=weights.device).expand_as(weights)


def _attended(query: Tensor, value: Tensor) -> Tensor:
    """Returns what tokens [..., L, d] get of the values [..., S, e] by `_own_attention`."""
    if value.shape[-3] != query.shape[-3]:  # heads that share their values
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    if query.shape[-2] == value.shape[-2]:
        return value
    return value.new_zeros(*value.shape[:-2], query.shape[-2], value.shape[-1])


def _central(weight: Tensor, stride: int | Sequence[int]) -> Tensor:
    """Makes the central taps of kernels [O, I, h, w] alike, and zeroes the others.

    Taps of different sizes would draw a cell's centre to one side. Each kernel keeps its norm,
    and the sign of its middle.
    """
    strides = (stride, stride) if isinstance(stride, int) else (stride[0], stride[-1])
    h, w = weight.shape[2:]
    taps = torch.outer(*(_taps(*pair) for pair in zip((h, w), strides, strict=True))).to(weight)
    middle = torch.where(weight[..., h // 2, w // 2] < 0, -1.0, 1.0)
    sizes = weight.flatten(2).norm(dim=2) * middle
    found: Tensor = sizes[..., None, None] * (taps / taps.norm())
    return found


def _taps(size: int, stride: int) -> Tensor:
    """Returns the shares of a kernel's taps: next to its middle, of all pixels the same.

    An odd kernel with a stride of two has three taps of which the outer ones count half, as
    neighbours share them.
    """
    count = min(size, stride)
    odd = (size - count) % 2
    count += odd
    taps = torch.zeros(size)
    taps[(size - count) // 2 : (size + count) // 2] = 1.0
    if odd:
        taps[(size - count) // 2] = taps[(size + count) // 2 - 1] = 0.5
    return taps


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns means and variances per channel: those that were learned are of whole kernels.

    They are constants, or each cell would look at the whole image.
    """
    axes = [axis for axis in range(x.ndim) if axis != 1]
    variance, mean = torch.var_mean(x.detach().float(), axes, correction=0)
    return mean, variance


def _cells(h: int, w: int) -> Tensor:
    """Returns (row, column) of the cells that are asked, int64 [K, 2].

    Those at the border are left out where there are others: they look beyond the image.
    """
    if h * w <= len(_COLUMNS):
        return torch.cartesian_prod(torch.arange(h), torch.arange(w))
    rows = [_spread(index, h) for index in range(len(_COLUMNS))]
    columns = [_spread(index, w) for index in _COLUMNS]
    return torch.tensor(sorted(set(zip(rows, columns, strict=True))))


def _spread(index: int, size: int) -> int:
    border = int(size > 4)
    return border + (2 * index + 1) * (size - 2 * border) // (2 * len(_COLUMNS))


def _seen(recorder: ValueRecorder, images: Tensor, value: Value, cells: Tensor) -> Tensor | None:
    """Returns which pixels each cell looks at, [K, H, W] of sum 1; None if that can't be told.

    The sum is 0 for a cell that looks at none.
    """
    grid = value.layout.to_grid(recorder.values[value.node])
    if not grid.requires_grad:
        return None
    generator = torch.Generator().manual_seed(1)
    # A plain sum is constant behind a layer normalisation.
    weights = torch.randn(grid.shape[1], generator=generator).to(grid)
    found = []
    for row, column in cells.tolist():
        total = (grid[:, :, row, column] * weights).sum()
        try:
            (gradient,) = gradients_of(total, [images], retain_graph=True, allow_unused=True)
        except RuntimeError:  # an operator without a derivative
            return None
        gradient = torch.zeros_like(images) if gradient is None else gradient
        found.append(gradient.double().square().sum((0, 1)).cpu())
    seen = torch.stack(found)
    amounts = seen.sum((1, 2), keepdim=True)
    if not bool((amounts > 0).any() and amounts.isfinite().all()):
        return None
    return seen / amounts.clamp(min=1e-300)


def _misplaced(cells: Tensor, seen: Tensor, shape: tuple[int, int], share: float = 0) -> str | None:
    """Says how the cells' centres differ from those of the image's cells; None if they don't.

    Args:
        cells: (row, column) of the cells, int64 [K, 2].
        seen: which pixels they look at, [K, H, W].
        shape: (h, w) of the grid.
        share: by how much of the grid they may be off at least.
    """
    sighted = seen.sum((1, 2)) > 0
    if int(sighted.sum()) < min(_LEAST_SIGHTED, len(cells)):
        return f"{len(cells) - int(sighted.sum())} of {len(cells)} see nothing of it (padded)"
    cells, seen = cells[sighted], seen[sighted]
    # A few pixels together, as single ones differ by chance.
    H, W = (min(size, 32) for size in seen.shape[1:])
    seen = adaptive_avg_pool2d(seen[None], (H, W))[0]
    seen = seen / seen.sum((1, 2), keepdim=True)
    own = (seen - seen.mean(0)).relu().sum((1, 2)).mean() / (1 - 1 / len(cells))
    if own < _VISIBLE:
        return None
    sizes = torch.tensor(shape, dtype=torch.float64)
    profiles = _profiles(seen)
    want, got = (cells + 0.5) / sizes, torch.stack([_centres(one) for one in profiles], 1)
    fits = {name: _fit(want @ torch.tensor(turn).double().T, got) for name, turn in _TURNS.items()}
    best = max(fits, key=lambda name: fits[name])
    least = _LEAST_FIT if len(cells) > 4 else _LEAST_FIT_OF_FOUR
    if fits["as they are"] >= least:
        return _moved(want, got, sizes, share)
    if fits[best] >= least:
        return f"they are {best}"
    if own < _FOCUSED:
        return None
    circular = torch.stack([_circular_centres(one) for one in profiles], 1)
    return _rolled(want, circular, sizes) or _MIXED


_MIXED = "they are in another order (windows, perhaps) or mixed"


def _profiles(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Returns how much each cell looks at each row and column, [K, H] and [K, W] of sum 1.

    What all cells look at (through attention, or a mixing of tokens) says nothing of their
    places; squares keep what is left of it from drawing the centres to the image's.
    """
    own = (seen - seen.mean(0)).relu().square()
    own = own / own.sum((1, 2), keepdim=True)
    return own.sum(2), own.sum(1)


def _centres(profile: Tensor) -> Tensor:
    """Returns the centres of profiles [K, n], from 0 to 1."""
    size = profile.shape[1]
    return profile @ ((torch.arange(size, dtype=torch.float64) + 0.5) / size)


def _circular_centres(profile: Tensor) -> Tensor:
    """Returns the centres of profiles [K, n] whose ends meet, from -0.5 to 0.5."""
    size = profile.shape[1]
    angles = 2 * torch.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return torch.atan2(profile @ angles.sin(), profile @ angles.cos()) / (2 * torch.pi)


def _fit(want: Tensor, got: Tensor) -> float:
    want, got = want - want.mean(0), got - got.mean(0)
    # A grid of one row covers all rows: at which of them a cell looks is chance.
    got = got * (want.abs().amax(0) > _SAME)
    return float((want * got).sum() / (want.norm() * got.norm()).clamp(min=1e-30))


def _moved(want: Tensor, got: Tensor, sizes: Tensor, share: float) -> str | None:
    """Says how far the outermost cells are from their places, where that is too far."""
    for axis, name in enumerate(("rows", "columns")):
        x, y, size = want[:, axis], got[:, axis], float(sizes[axis])
        if x.max() - x.min() < _SAME:
            continue
        slope = float(((x - x.mean()) * y).sum() / (x - x.mean()).square().sum())
        ends = torch.tensor([0.5, size - 0.5], dtype=torch.float64) / size
        first, last = ((slope * (ends - x.mean()) + y.mean() - ends) * size).tolist()
        if max(abs(first), abs(last)) <= max(_MOST_CELLS, share * size):
            continue
        if first * last > 0:
            return f"they are shifted by about {(first + last) / 2:.1f} {name}"
        what = f"{_PART} (cropped, or by many kernels without padding)"
        what = "go beyond the image (padded)" if first < 0 else what
        return f"they {what}: the outermost {name} are off by {first:.1f} and {last:.1f}"
    return None


def _rolled(want: Tensor, got: Tensor, sizes: Tensor) -> str | None:
    """Says by how much the grid is rolled, where all cells are off by the same, going round."""
    turns = torch.exp(2j * torch.pi * (got - want)).mean(0)
    if float(turns.abs().min()) < _LEAST_FIT:
        return None
    rows, columns = (turns.angle() / (2 * torch.pi) * sizes).tolist()
    return f"they are rolled by about {rows:.1f} rows and {columns:.1f} columns"


def _margins(seen: Tensor, shape: tuple[int, int]) -> list[tuple[float, float]]:
    """Returns how many cells before and behind what is looked at nothing is, by axis."""
    found = []
    for axis, size in enumerate(shape):
        used = (seen > 0).any(1 - axis).nonzero()
        length = seen.shape[axis]
        before, behind = int(used.min()), length - 1 - int(used.max())
        found.append((before / length * size, behind / length * size))
    return found


def _has_margin(seen: Tensor, shape: tuple[int, int]) -> bool:
    # Strides may leave out less than one cell at the end, and at the beginning nothing.
    return any(before > _MARGIN or behind >= 1 for before, behind in _margins(seen, shape))


def _cropped(features: fx.GraphModule, value: Value, example: Tensor) -> str | None:
    """Says which part of the image no cell looks at, with whole kernels."""
    images = random_images(features, example, 1).requires_grad_()
    recorder = _Straight(features, {value.node})
    with torch.enable_grad():
        recorder.run(images)
        generator = torch.Generator().manual_seed(1)
        found = recorder.values[value.node]
        weights = torch.randn(found.shape, generator=generator).to(found)
        (gradient,) = gradients_of((found * weights).sum(), [images])
    seen = gradient[0].abs().sum(0).cpu()
    shape = value.layout.shape[1:]
    if not bool(seen.isfinite().all() and seen.any()) or not _has_margin(seen, shape):
        return None
    used = (seen > 0).nonzero()
    (top, left), (bottom, right) = used.amin(0).tolist(), used.amax(0).tolist()
    H, W = seen.shape
    return (
        f"nothing but the rows {top} to {bottom} of {H} and the columns {left} to {right} of "
        f"{W} pixels counts (cropped)"
    )
