"""Drawing a heatmap and its boxes over an image."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.types import Array
from sigcam.images.pixels import shown

# Its lightness rises steadily with the value, so it reads the same in grey print and for
# colour-blind eyes, and half laid over a photograph it dims what has no evidence.
_COLOURS = cv2.COLORMAP_INFERNO

ALPHA = 0.5
"""Weight of the colours unless the caller says otherwise."""


def draw(
    image: Array,
    heatmap: Array | None,
    crop_box: tuple[int, int, int, int],
    alpha: float,
    boxes: Iterable[tuple[int, int, int, int]] = (),
) -> Array:
    """Lays a heatmap's colours and boxes over an image.

    Args:
        image: uint8 or float32 [H, W, n], as the model reads it; `sigcam.images.pixels.shown`
            says how other channels than RGB are shown.
        heatmap: float32 [H, W] in [0, 1]; None leaves the image uncoloured.
        crop_box: x0, y0, x1, y1 in pixels, ends out. Outside it, where the network saw
            nothing, the image stays as it is.
        alpha: weight of the colours, 0 to 1.
        boxes: x0, y0, x1, y1 each, ends out; drawn in white with a dark edge.

    Returns:
        uint8 [H, W, 3] RGB in a new array.

    Raises:
        UsageError: alpha outside 0..1.

    Example:
        >>> image = np.full((4, 6, 3), 200, np.uint8)
        >>> drawn = draw(image, np.ones((4, 6), np.float32), (0, 0, 3, 4), ALPHA)
        >>> bool((drawn[:, :3] != image[:, :3]).any()), bool((drawn[:, 3:] == image[:, 3:]).all())
        (True, True)
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha must be from 0 to 1, got {alpha}")
    image = shown(image)
    drawn = image.copy()
    if heatmap is not None:
        x0, y0, x1, y1 = crop_box
        levels = cv2.convertScaleAbs(heatmap[y0:y1, x0:x1], alpha=255)
        colours = cv2.cvtColor(cv2.applyColorMap(levels, _COLOURS), cv2.COLOR_BGR2RGB)
        part = image[y0:y1, x0:x1]
        drawn[y0:y1, x0:x1] = cv2.addWeighted(colours, alpha, part, 1 - alpha, 0)
    line = max(1, round(min(image.shape[:2]) / 200))
    for x0, y0, x1, y1 in boxes:
        corners = (x0, y0), (x1 - 1, y1 - 1)
        cv2.rectangle(drawn, *corners, color=(0, 0, 0), thickness=3 * line)
        cv2.rectangle(drawn, *corners, color=(255, 255, 255), thickness=line)
    return np.asarray(drawn)
