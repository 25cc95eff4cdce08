"""Colour maps: a table of 256 colours for a value from 0 to 1."""

from __future__ import annotations

import difflib
from functools import lru_cache

import cv2
import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.types import Array

DEFAULT = "inferno"
"""Its lightness rises steadily with the value, so it reads the same in grey print and for
colour-blind eyes."""

DIVERGING = "blue-red"
"""For signed maps: blue below the middle, white there, red above it."""

# Alike in lightness at equal distances from the middle (CIE L* 35, 63, 96, 63, 35).
_BLUE_TO_RED = ((8, 79, 148), (88, 159, 221), (243, 243, 243), (236, 120, 101), (167, 20, 45))


def colour_maps() -> list[str]:
    """Returns the names of the colour maps: OpenCV's, "grey" and the diverging one.

    Example:
        >>> names = colour_maps()
        >>> [name for name in ("grey", "inferno", "jet", "turbo", "viridis") if name in names]
        ['grey', 'inferno', 'jet', 'turbo', 'viridis']
    """
    prefix = "COLORMAP_"
    theirs = [name[len(prefix) :].lower() for name in dir(cv2) if name.startswith(prefix)]
    return sorted({*theirs, "grey", DIVERGING})


@lru_cache(maxsize=64)
def colours_of(name: str) -> Array:
    """Returns a colour map's colours, uint8 [256, 3] RGB, read-only, for the values i / 255.

    Args:
        name: one of `colour_maps()`.

    Raises:
        UsageError: another name.

    Example:
        >>> colours_of("inferno")[[0, 255]].tolist()
        [[0, 0, 4], [252, 255, 164]]
        >>> colours_of("blue-red")[[0, 127, 128, 255]].tolist()
        [[8, 79, 148], [242, 242, 243], [243, 242, 242], [167, 20, 45]]
    """
    known = colour_maps()
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"there is no colour map {name!r}{hint} The colour maps are {', '.join(known)}"
        )
    steps = np.arange(256)
    if name == "grey":
        table = np.repeat(steps[:, None], 3, 1).astype(np.uint8)
    elif name == DIVERGING:
        at = np.linspace(0, 255, len(_BLUE_TO_RED))
        channels = [np.interp(steps, at, one) for one in zip(*_BLUE_TO_RED, strict=True)]
        table = np.stack(channels, 1).round().astype(np.uint8)
    else:
        code = getattr(cv2, f"COLORMAP_{name.upper()}")
        bgr = cv2.applyColorMap(steps.astype(np.uint8)[None], code)
        table = np.ascontiguousarray(bgr[0, :, ::-1])
    table.setflags(write=False)
    return table
