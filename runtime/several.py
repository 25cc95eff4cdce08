"""What several Explanations have together: their heatmaps as one array, and one range."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from sigcam.core.arguments import shown
from sigcam.core.errors import UsageError
from sigcam.core.types import Array
from sigcam.images.upsample import FLAT
from sigcam.runtime.explanation import Explanation, write_each


def stack_heatmaps(explanations: Iterable[Explanation], dtype: npt.DTypeLike = np.uint8) -> Array:
    """Makes the heatmaps of several classes of an image, or of images of one size, as one array.

    As bytes that is several times as fast as asking each for its `heatmap`, and takes a quarter
    of the memory: for a hundred classes, getting new memory costs more than filling it. The
    Explanations keep nothing of it.

    Args:
        explanations: of images of one size.
        dtype: uint8, or float32.

    Returns:
        [K, H, W] in the order given. float32: the heatmaps, in [0, 1]. uint8: 255 times as much,
        rounded. All zeros where one isn't `valid`.

    Raises:
        UsageError: none, images of several sizes, something else than Explanations, or another
            type.

    Example:
        maps = sigcam.stack_heatmaps(session.explain("cat.jpg", classes=list(range(100))))
        maps.shape, maps.dtype  # (100, 480, 640), uint8
    """
    found = _listed(explanations)
    try:
        wanted = np.dtype(dtype)
    except (TypeError, ValueError) as exc:
        raise UsageError(f"dtype must be uint8 or float32, got {shown(dtype)}") from exc
    if wanted not in (np.uint8, np.float32):
        raise UsageError(f"dtype must be uint8 or float32, got {wanted}")
    sizes = sorted({one.size for one in found})
    if len(sizes) > 1:
        texts = ", ".join(f"{width} x {height}" for width, height in sizes[:4])
        raise UsageError(
            f"heatmaps of one size make one array, got images of {texts} pixels; stack those of "
            "each size by themselves"
        )
    width, height = sizes[0]
    stacked: Array = np.empty((len(found), height, width), wanted)
    write_each(found, stacked)
    return stacked


def shared_cam_range(explanations: Iterable[Any]) -> tuple[float, float]:
    """Finds the range of CAM values that several maps have together.

    Drawn with it (`OverlayOptions.cam_range`), the same colour is the same value of the CAM in
    all of them: frames of a video, images of one class, classes of one image.

    Args:
        explanations: Explanations, or lists of them as `Session.stream` yields; taken one at a
            time, and not kept.

    Returns:
        The smallest and the largest value. Maps that aren't finite don't count.

    Raises:
        UsageError: no map that is finite, maps that all have one and the same value, or something
            else than Explanations.

    Example:
        shared = sigcam.shared_cam_range(session.stream(images))
        options = sigcam.OverlayOptions(cam_range=shared)
        overlays = [one.overlay(options) for one, *_ in session.stream(images)]
    """
    low, high = np.inf, -np.inf
    for one in _flat(explanations):
        found = one.cam_range
        if found is not None:
            low, high = min(low, found[0]), max(high, found[1])
    if high - low > FLAT * max(abs(low), abs(high)):
        return float(low), float(high)
    got = "none that is finite" if low > high else f"the value {low:g} only"
    raise UsageError(f"a range needs maps with two values at least, got {got}; give it by hand")


def _listed(explanations: Iterable[Explanation]) -> list[Explanation]:
    found = list(_flat(explanations))
    if not found:
        raise UsageError("at least one Explanation is wanted, got none")
    return found


def _flat(explanations: Iterable[Any]) -> Iterable[Explanation]:
    scalar = getattr(explanations, "shape", None) == ()
    if not isinstance(explanations, Iterable) or isinstance(explanations, (str, bytes)) or scalar:
        raise UsageError(
            "several Explanations are wanted, as Session.explain returns them, got "
            f"{shown(explanations)}; put a single one in a list"
        )
    for one in explanations:
        if isinstance(one, Explanation):
            yield one
        elif isinstance(one, (list, tuple)):
            yield from _flat(one)
        else:
            raise UsageError(
                "several Explanations are wanted, as Session.explain returns them, got "
                f"{shown(one)} among them"
            )
