"""The grid pointing game: does a class's map point at that class's image in a mosaic?

Boehle, Fritz and Schiele, "Convolutional Dynamic Alignment Networks for Interpretable
Classifications", CVPR 2021, Section 5.2: images of different classes that the network gets right
are put together to a mosaic of n x n tiles. For the class of tile i, with A+ the positive part of
its map over the whole mosaic,

    share_i = sum of A+ inside tile i / sum of A+ everywhere,

which is 1 / n^2 by chance. A map that isn't positive anywhere points nowhere and counts 0.

The variant with a threshold looks at the strong part of a map only: what lies below a share t of
its maximum counts as nothing. The same t is taken for all maps, the best one of `LEVELS`.
"""

from __future__ import annotations

import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.types import Array
from sigcam.evaluate.localization.protocol import SIZE, enlarge

LEVELS: Array = np.arange(20) / 20
"""Shares of a map's maximum below which it counts as nothing, float64 [20]; the first is 0."""


def tile_edges(length: int, side: int) -> list[int]:
    """Returns where the tiles of a mosaic begin along one axis, and where the last one ends.

    Args:
        length: of the mosaic in pixels, at least `side`.
        side: tiles along the axis, at least 1.

    Returns:
        side + 1 positions; tiles differ by a pixel at most.

    Raises:
        UsageError: fewer pixels than tiles.

    >>> tile_edges(7, 2)
    [0, 4, 7]
    """
    if not 1 <= side <= length:
        raise UsageError(f"a mosaic of {length} pixels can't have {side} tiles in a row")
    return [-(-length * place // side) for place in range(side + 1)]


def tile_rectangle(height: int, width: int, tile: int, side: int) -> tuple[slice, slice]:
    """Returns the rows and the columns of a tile in a mosaic.

    Args:
        height: of the mosaic in pixels.
        width: of the mosaic in pixels.
        tile: the tile's number, row after row from the top left.
        side: tiles in a row.

    Raises:
        UsageError: there is no such tile, or fewer pixels than tiles.

    >>> tile_rectangle(8, 6, tile=1, side=2)
    (slice(0, 4, None), slice(3, 6, None))
    """
    if not 0 <= tile < side * side:
        raise UsageError(f"a mosaic of {side} x {side} has no tile {tile}")
    places = zip((height, width), divmod(tile, side), strict=True)
    rows, columns = (
        slice(*tile_edges(length, side)[place : place + 2]) for length, place in places
    )
    return rows, columns


def tile_shares(cam: Array, tile: int, side: int, size: int = SIZE) -> Array:
    """Computes the share of a map inside its own tile, at every threshold of `LEVELS`.

    The positive part of the map is enlarged bilinearly to a square that stands for the mosaic,
    so that a cell at the border of two tiles counts in both.

    Args:
        cam: floating [h, w], of the tile's class, over the whole mosaic; any range.
        tile: the tile's number, row after row from the top left.
        side: tiles in a row.
        size: side of the square in pixels.

    Returns:
        float64 [20], 0 to 1; zeros where nothing is positive.

    Raises:
        UsageError: the CAM isn't a non-empty array [h, w] of numbers, or there is no such tile.

    Example:
        >>> cam = np.array([[3.0, 0.0], [0.0, 1.0]])
        >>> shares = tile_shares(cam, tile=0, side=2, size=2)
        >>> float(shares[0]), float(shares[10])  # all of it; what is at least half the maximum
        (0.75, 1.0)
    """
    own = tile_rectangle(size, size, tile, side)
    positive = np.maximum(cam, 0)
    if not np.isfinite(positive).all():
        raise UsageError("CAM must be finite, got NaN or infinity")
    values = enlarge(positive, size, size, "bilinear")
    largest = values.max()
    if not largest > 0:
        return np.zeros(len(LEVELS))
    # A value counts at every threshold up to its own level. Rounding may lift a value that is
    # exactly at a threshold or lower it, so the last bits are left out.
    levels = np.floor(values / largest * len(LEVELS) + 1e-9).astype(np.int64)
    levels = np.minimum(levels, len(LEVELS) - 1)
    inside, everywhere = (
        np.bincount(chosen[0].ravel(), chosen[1].ravel(), len(LEVELS))[::-1].cumsum()[::-1]
        for chosen in ((levels[own], values[own]), (levels, values))
    )
    return np.asarray(inside / everywhere)
