"""Noisy linear imputation: removed pixels become the weighted means of their neighbours, and noise.

Rong et al. 2022 (ROAD): a removed pixel gets 1/6 of each pixel beside, above and below
and 1/12 of each across a corner, removed ones included: a sparse linear system. Its matrix is
symmetric and positive definite, so that conjugate gradients solve it, and a product with it is
one 3x3 filter. Plain, they took 200 to 500 steps on a 224x224 image; with corrections on
blocks of 2, 4, 8, ... pixels as preconditioner (Bramble, Pasciak and Xu 1990, with blocks as
basis) it is 30 to 90. SciPy's direct solver would be one more dependency of 35 MB for this
function alone.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.types import Array

NOISE = 0.01
"""Standard deviation of the noise on removed pixels, as a share of 255."""

TOLERANCE = 3e-3
"""Largest amount, in levels of 255, by which a removed pixel may differ from its neighbours' mean.

What is left of the error was below 0.1 levels with up to half of a 224x224 image's pixels
removed, and below 0.3 with 90%; the noise is 2.55.
"""

_STEPS = 1000
_WEIGHTS = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]], np.float32) / 12
# A side of a block is coupled to the next block by this much per pixel.
_SIDE = 1 / 3
_TINY = float(np.finfo(np.float32).tiny)


def impute(image: Array, removed: Array) -> Array:
    """Fills removed pixels so that each is the weighted mean of its neighbours.

    Args:
        image: [H, W, n] in [0, 255], of any type.
        removed: bool [H, W]; at least one pixel stays.

    Returns:
        float32 [H, W, n] in [0, 255]; pixels that stay are unchanged. Outside the image
        there are no neighbours: the weights of the others count for more.

    Raises:
        UsageError: shapes that don't fit, nothing stays, or no solution within 1,000 steps.

    >>> image, removed = np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3), bool)
    >>> image[0, 1], removed[1, 1] = 60, True
    >>> impute(image, removed)[1, 1].round(1)
    array([10., 10., 10.], dtype=float32)
    """
    if removed.dtype != np.bool_ or removed.shape != image.shape[:2] or removed.all():
        raise UsageError(
            f"removed must be bool {list(image.shape[:2])} with a pixel that stays, got "
            f"{removed.dtype} {list(removed.shape)}"
        )
    if not removed.any():
        return image.astype(np.float32)
    channels = image.shape[2]
    # Three channels at a time; channels don't depend on each other.
    parts = [np.arange(first, first + 3) % channels for first in range(0, channels, 3)]
    solved = [_System(image[..., part], removed).solve() for part in parts]
    values = np.clip(np.concatenate(solved, axis=2)[..., :channels], 0, 255)
    return np.where(removed[..., None], values, image.astype(np.float32))


def remove_pixels(
    image: Array, removed: Array, rng: np.random.Generator, noise: float = NOISE
) -> Array:
    """Imputes the removed pixels and adds Gaussian noise to them.

    Args:
        image: uint8 or float32 [H, W, n].
        removed: bool [H, W]; at least one pixel stays.
        rng: what the noise is drawn from; each value has its own.
        noise: standard deviation of the noise, as a share of 255; of values that aren't bytes,
            as a share of the range that the image's values have.

    Returns:
        The same type and shape: bytes rounded, and all cut off at 0 and 255, or at the ends of
        that range.

    Raises:
        UsageError: as `impute`.

    Example:
        >>> image, removed = np.full((3, 3, 3), 60, np.uint8), np.zeros((3, 3), bool)
        >>> image[1, 1], removed[1, 1] = 255, True
        >>> remove_pixels(image, removed, np.random.default_rng(0), noise=0)[1, 1]
        array([60, 60, 60], dtype=uint8)
    """
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        step = (high - low) / 255 or 1.0
        made = step * _with_noise((image - low) / step, removed, rng, noise) + low
        return np.where(removed[..., None], made, image).astype(image.dtype)
    return np.rint(_with_noise(image, removed, rng, noise)).astype(np.uint8)


def _with_noise(image: Array, removed: Array, rng: np.random.Generator, noise: float) -> Array:
    """Imputes and adds noise to an image of levels from 0 to 255; returns the same."""
    values = impute(image, removed)
    size = (int(removed.sum()), image.shape[2])
    values[removed] += rng.normal(0.0, noise * 255.0, size).astype(np.float32)
    return np.clip(values, 0, 255)


class _System:
    """The linear equations of one image's removed pixels."""

    def __init__(self, image: Array, removed: Array) -> None:
        hole = removed.astype(np.float32)
        kept = 1 - hole
        # All in three colours: broadcasting along a last axis of three is slow.
        self.hole = _coloured(hole)
        self.weights = _coloured(_neighbours(np.ones_like(hole)))
        self.shares = self.hole / self.weights
        self.inverses = _block_inverses(hole, kept)
        self.values = np.ascontiguousarray(image, np.float32) * _coloured(kept)
        self.values += self.hole * _filled(self.values, kept)

    def solve(self) -> Array:
        """Returns the filled image, float32 [H, W, 3], by preconditioned conjugate gradients.

        The three colours are one system. Arrays are changed in place: nearly all of the time goes
        into passes over memory.
        """
        values = self.values
        residual = -self._product(values)
        step = self._precondition(residual)
        energy = _dot(residual, step)
        for _ in range(_STEPS):
            if cv2.norm(residual, cv2.NORM_INF) <= TOLERANCE:
                return values
            product = self._product(step)
            length = energy / max(_dot(step, product), _TINY)
            cv2.scaleAdd(step, length, values, dst=values)
            cv2.scaleAdd(product, -length, residual, dst=residual)
            scaled = self._precondition(residual)
            last, energy = energy, _dot(residual, scaled)
            cv2.scaleAdd(step, energy / max(last, _TINY), scaled, dst=step)
        raise UsageError(
            f"imputation didn't reach {TOLERANCE} in {_STEPS} steps on an image of "
            f"{values.shape[1]}x{values.shape[0]}; give a smaller image"
        )

    def _product(self, values: Array) -> Array:
        """Computes how far removed pixels are from their neighbours' mean, times the weights."""
        product = self.weights * values
        product -= _neighbours(values)
        product *= self.hole
        return product

    def _precondition(self, residual: Array) -> Array:
        """Adds up the residual's corrections on blocks of all sizes."""
        means = [residual]
        for _ in self.inverses:
            means.append(_halved(means[-1]))
        correction = means.pop() * self.inverses[-1]
        for inverse in self.inverses[-2::-1]:
            finer = means.pop()
            finer *= inverse
            finer += _doubled(correction, finer.shape)
            correction = finer
        scaled = _doubled(correction, residual.shape) * self.hole
        scaled += residual * self.shares
        return scaled


def _block_inverses(hole: Array, kept: Array) -> list[Array]:
    """Computes, for blocks of 2, 4, ... pixels, 1 over what holds removed pixels in place.

    That and the residual, which it multiplies, are means over the block, as they come by halving.
    """
    held = hole * _neighbours(kept)
    inverses: list[Array] = []
    side = 1
    while not inverses or max(hole.shape) > 2:
        held, hole = _halved(held), _halved(hole)
        side *= 2
        strength = held + 4 * _SIDE / side * hole
        inverse = np.where(strength > 0, 1 / np.maximum(strength, _TINY), 0)
        inverses.append(_coloured(inverse.astype(np.float32)))
    return inverses


def _filled(values: Array, kept: Array) -> Array:
    """Fills removed pixels from the means of ever larger blocks, by weights kept: a start."""
    if max(kept.shape) <= 2:
        mean = values.sum(axis=(0, 1)) / np.maximum(kept.sum(), _TINY)
        return np.broadcast_to(mean, values.shape).astype(np.float32)
    small_kept = _halved(kept)
    small = _halved(values) / _coloured(np.maximum(small_kept, np.float32(1e-6)))
    empty = (small_kept == 0)[..., None]
    present = (small_kept > 0).astype(np.float32)
    small = np.where(empty, _filled(small * _coloured(present), present), small)
    size = (kept.shape[1], kept.shape[0])
    return np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_LINEAR), np.float32)


def _neighbours(values: Array) -> Array:
    """Computes the weighted sum of the eight neighbours; nothing lies outside the image."""
    return np.asarray(
        cv2.filter2D(values, -1, _WEIGHTS, borderType=cv2.BORDER_CONSTANT), np.float32
    )


def _halved(values: Array) -> Array:
    """Computes the means of 2x2 pixels; those outside the image are zero."""
    height, width = values.shape[:2]
    even: Any = values
    if height % 2 or width % 2:
        around = (0, height % 2, 0, width % 2)
        even = cv2.copyMakeBorder(values, *around, cv2.BORDER_CONSTANT, value=0)
    size = ((width + 1) // 2, (height + 1) // 2)
    halved = cv2.resize(even, size, interpolation=cv2.INTER_AREA)
    return np.asarray(halved, np.float32).reshape(size[1], size[0], *values.shape[2:])


def _doubled(values: Array, shape: tuple[int, ...]) -> Array:
    """Repeats each pixel four times, cut off at `shape`."""
    size = (2 * values.shape[1], 2 * values.shape[0])
    doubled = cv2.resize(values, size, interpolation=cv2.INTER_NEAREST)
    return np.asarray(doubled, np.float32)[: shape[0], : shape[1]]


def _coloured(plane: Array) -> Array:
    """Repeats a plane [H, W] for three colours, [H, W, 3]."""
    return np.repeat(plane[..., None], 3, axis=2)


def _dot(a: Array, b: Array) -> float:
    """Computes a dot product; not by BLAS, which would start threads of its own in each of ours."""
    return float(np.einsum("i,i", a.ravel(), b.ravel()))
