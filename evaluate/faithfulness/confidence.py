"""Average Drop and Increase in Confidence, for an image multiplied by its map.

Chattopadhay et al. 2018 (Grad-CAM++), as in Beyond Softmax, Table 1. Y is the confidence of
the predicted class on the image, O that of the same class on the masked image, both by
the softmax branch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sigcam.core.errors import UsageError

Floats = npt.NDArray[np.float64]


def masked_image(
    image: npt.NDArray[np.uint8], scores: npt.NDArray[np.floating]
) -> npt.NDArray[np.uint8]:
    """The image times its map, pixel by pixel, rounded.

    Pixels of 0 to 255 are multiplied, before the network's own normalisation, so that what
    the map leaves out turns black. Code that multiplies the normalised image turns it to
    the mean colour instead. A constant map is all zero and gives a black image.

    Args:
        image: uint8 [H, W, 3].
        scores: floating [H, W] in [0, 1].

    Returns:
        uint8 [H, W, 3], a new array.

    Raises:
        UsageError: other shapes or types, or scores outside [0, 1].
    """
    check_image(image, scores)
    if not (scores.min() >= 0 and scores.max() <= 1):
        raise UsageError(
            f"map must lie in [0, 1] without NaN, got {scores.min()} to {scores.max()}"
        )
    return np.rint(image * scores[..., None]).astype(np.uint8)


def check_image(image: npt.NDArray[np.uint8], scores: npt.NDArray[np.floating]) -> None:
    """Refuses an image that isn't uint8 [H, W, 3], or a map that isn't [H, W]."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UsageError(f"image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    if scores.shape != image.shape[:2] or scores.size == 0:
        raise UsageError(
            f"map must have the image's size {list(image.shape[:2])}, got {list(scores.shape)}"
        )


def confidence_drop(before: npt.ArrayLike, after: npt.ArrayLike) -> Floats:
    """Each image's term of Average Drop in percent: 100 max(0, Y - O) / Y.

    Args:
        before: floats [n], Y, in (0, 1].
        after: floats [n], O, in [0, 1].

    Returns:
        float64 [n] in [0, 100]; its mean is Average Drop (lower is better).
    """
    y, o = _pair(before, after)
    return np.asarray(np.maximum(0.0, y - o) / y * 100.0)


def confidence_rise(before: npt.ArrayLike, after: npt.ArrayLike) -> Floats:
    """Each image's term of Increase in Confidence in percent: 100 where O > Y, else 0.

    Args and result as in `confidence_drop`; the mean is % Increase (higher is better).
    """
    y, o = _pair(before, after)
    return np.where(o > y, 100.0, 0.0)


def _pair(before: npt.ArrayLike, after: npt.ArrayLike) -> tuple[Floats, Floats]:
    y, o = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if y.ndim != 1 or y.shape != o.shape or len(y) == 0:
        raise UsageError(
            "confidences must be two arrays [n] of the same length, n >= 1, got "
            f"{list(y.shape)} and {list(o.shape)}"
        )
    if not ((y > 0) & (y <= 1) & (o >= 0) & (o <= 1)).all():
        raise UsageError("confidences must be softmax probabilities: Y in (0, 1], O in [0, 1]")
    return y, o
