"""Checks of the images that a Session is called with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import numpy as np

from sigcam.core.arguments import shown
from sigcam.core.errors import UsageError


def check_several(images: object) -> None:
    """Refuses what isn't several images in an order, before a stream of it begins.

    Raises:
        UsageError: it is one image, has no order, or can't be iterated over; says what to pass.

    Example:
        >>> check_several(["cat.jpg", "dog.jpg"])
        >>> check_several("cat.jpg")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: stream takes several images, got 'cat.jpg'; pass one to ...
    """
    one = isinstance(images, (str, bytes, bytearray, memoryview, np.ndarray, os.PathLike))
    if one or not isinstance(images, Iterable) or hasattr(images, "read"):
        raise UsageError(
            f"stream takes several images, got {shown(images)}; pass one to explain, or put it in "
            "[]"
        )
    if isinstance(images, (set, frozenset, Mapping)):
        raise UsageError(
            f"stream takes several images in an order, got {shown(images)}; pass a list of them"
        )
    if hasattr(images, "shape"):  # of tensors, the rows would be taken for images
        raise UsageError(
            f"stream takes several images, got {shown(images)}; pass a list of arrays "
            "[H, W, channels]"
        )
