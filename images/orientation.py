"""Turning a stored image upright, as its file says."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from sigcam.core.types import Array
from sigcam.images.formats.header import TRANSPOSED

FLIPPED = {
    2: (False, True),
    3: (True, True),
    4: (True, False),
    6: (False, True),
    7: (True, True),
    8: (True, False),
}
"""By orientation, whether upright rows and columns run against those that they come from."""

_TURNS = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}


def upright(image: Array, orientation: int) -> Array:
    """Turns a stored image as EXIF says; orientations 5 to 8 change rows and columns too.

    Args:
        image: [H, W] or [H, W, channels].
        orientation: 1 to 8.

    Returns:
        The image itself, a view or a copy.

    Example:
        >>> upright(np.array([[1, 2, 3]]), 6).tolist()
        [[1], [2], [3]]
    """
    if image.dtype == np.uint8 and orientation in _TURNS and (image.ndim < 3 or image.shape[2] < 5):
        turned = cast("Array", cv2.rotate(image, _TURNS[orientation]))
        return turned.reshape(*turned.shape[:2], *image.shape[2:])
    if orientation in TRANSPOSED:
        image = image.swapaxes(0, 1)
    rows, columns = FLIPPED.get(orientation, (False, False))
    return image[:: -1 if rows else 1, :: -1 if columns else 1]
