"""The conventions of the evaluation protocol of Choe et al. 2020, in one place.

Source: "Evaluating Weakly Supervised Object Localization Methods Right" (CVPR 2020) and its
code, wsolevaluation, in the version with MaxBoxAccV2. The numbers follow the code, not the
paper, where the two differ: thresholds are np.arange(0, 1, 0.001), which are the 1,000
values 0, 0.001, ..., 0.999 (at 1 no pixel lies above the largest, so it could only count
ground-truth boxes of a few pixels at the corner). PxAP has one class of scores more, those
that are exactly 1: 1,001 in all.

The protocol compares CAMs, boxes and masks on a square that stands for the whole image. The
scores of a square's pixels, a heatmap in [0, 1], are the protocol's "score map". Its networks see
the whole image, resized whatever the aspect; `place_scores` treats other resize rules too.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from sigcam.core.errors import UsageError
from sigcam.core.types import Array
from sigcam.images.preprocess import Axis, Placement
from sigcam.images.upsample import Interpolation

SIZE = 224
"""Side of the square in pixels."""

THRESHOLDS: Array = np.arange(0, 1, 0.001)
"""Shares of a heatmap's maximum at which boxes are drawn, float64 [1000]."""

IOU_THRESHOLDS = (0.3, 0.5, 0.7)
"""IoU that a box has to reach: MaxBoxAccV2 is the mean over these."""

BACKGROUND, FOREGROUND, IGNORED = 0, 1, 255
"""Values of a mask as `pixel_labels` makes it."""


def score_heatmap(cam: Array, size: int = SIZE, interpolation: Interpolation = "bicubic") -> Array:
    """Enlarges a CAM to the protocol's square and normalises it, in that order.

    Bicubic (OpenCV's INTER_CUBIC, a = -0.75) in float64, then min-max. The overshoot of the
    bicubic kernel is part of the protocol. The CAM is taken to cover the whole image, as
    it does for the resize rule "stretch"; `place_scores` is for the others.

    Args:
        cam: floating [h, w], any range; usually ReLU'd evidence, >= 0.
        size: side of the square in pixels.
        interpolation: "bicubic" as in the protocol, or "bilinear".

    Returns:
        float64 [size, size] in [0, 1], reaching both. All zero where the enlarged CAM is
        constant or has a NaN: the protocol's definition.

    Raises:
        UsageError: the CAM isn't a non-empty array [h, w].

    >>> score_heatmap(np.array([[1.0, 1.0], [3.0, 3.0]]), size=2)
    array([[0., 0.],
           [1., 1.]])
    """
    return normalise(enlarge(cam, size, size, interpolation))


def place_scores(
    cam: Array,
    placement: Placement,
    size: int = SIZE,
    interpolation: Interpolation = "bicubic",
) -> tuple[Array, bool]:
    """Enlarges a CAM to the part of the protocol's square that it covers, and normalises it.

    With the resize rule "stretch" a CAM covers the whole image, as in the protocol, and is
    treated exactly as there. With "crop" and "letterbox" it covers a part of the image or more
    than it: it is enlarged to the rectangle that it covers on the square, in whole pixels, and
    normalised over what is inside the image; where the network saw nothing, the score is 0.

    Args:
        cam: floating [h, w], over the whole input.
        placement: where the network's input lies in the image.
        size: side of the square in pixels.
        interpolation: as for `score_heatmap`.

    Returns:
        float64 [size, size] in [0, 1], and whether it is valid (not constant).

    Raises:
        UsageError: the CAM isn't a non-empty array [h, w].

    Example:
        >>> from sigcam.core.spec import Preprocessing
        >>> from sigcam.images.preprocess import prepare
        >>> placement = prepare(np.zeros((10, 20, 3), np.uint8), Preprocessing(8, 8, "crop"))[1]
        >>> scores, valid = place_scores(np.array([[1.0, 3.0]]), placement, size=4)
        >>> scores[0], valid  # the crop is the middle half
        (array([0., 0., 1., 0.]), True)
    """
    (y0, y1), (x0, x1) = _span(placement.rows, size), _span(placement.columns, size)
    if (y0, y1, x0, x1) == (0, size, 0, size):
        scores = score_heatmap(cam, size, interpolation)
        return scores, bool(scores.any())
    part = enlarge(cam, y1 - y0, x1 - x0, interpolation)
    inside = normalise(part[max(0, -y0) : size - y0, max(0, -x0) : size - x0])
    scores = np.zeros((size, size))
    scores[max(0, y0) : y1, max(0, x0) : x1] = inside
    return scores, bool(inside.any())


def enlarge(cam: Array, height: int, width: int, interpolation: Interpolation = "bicubic") -> Array:
    """Resizes a CAM, pixel centres at halves, edge cells repeated outwards.

    Args:
        cam: floating [h, w], any range.
        height: rows of the result.
        width: columns of the result.
        interpolation: "bicubic" (a = -0.75) or "bilinear".

    Returns:
        float64 [height, width] in a new array.

    Raises:
        UsageError: the CAM isn't a non-empty array [h, w].

    Example:
        >>> enlarge(np.array([[2.0, 6.0]]), height=2, width=2)
        array([[2., 6.],
               [2., 6.]])
    """
    if cam.ndim != 2 or cam.size == 0:
        raise UsageError(f"CAM must be a non-empty array [h, w], got shape {list(cam.shape)}")
    size = (width, height)
    kind = cv2.INTER_CUBIC if interpolation == "bicubic" else cv2.INTER_LINEAR
    resized = cv2.resize(cam.astype(np.float64), size, interpolation=kind)
    return np.array(resized, np.float64)


def normalise(values: Array) -> Array:
    """Moves and scales values to the range [0, 1].

    Args:
        values: float64 [H, W].

    Returns:
        float64 [H, W] in a new array; all zero where the values are constant or have a NaN.

    >>> normalise(np.array([[2.0, 4.0, 6.0]]))
    array([[0. , 0.5, 1. ]])
    >>> normalise(np.array([[3.0, 3.0]]))
    array([[0., 0.]])
    """
    if values.size == 0:
        return np.zeros(values.shape)
    low, high = values.min(), values.max()
    if np.isnan(low) or low == high:
        return np.zeros(values.shape)
    scores: Array = values - low
    scores /= scores.max()
    return scores


def check_scores(scores: Array) -> None:
    """Refuses what isn't a heatmap.

    Raises:
        UsageError: the array isn't floating [H, W] in [0, 1] without NaN.

    Example:
        >>> check_scores(np.array([[0.0, 2.0]]))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: heatmap must lie in [0, 1] without NaN, got 0.0 to 2.0; ...
    """
    if scores.ndim != 2 or scores.size == 0 or not np.issubdtype(scores.dtype, np.floating):
        raise UsageError(f"heatmap must be floating [H, W], got {scores.dtype} {[*scores.shape]}")
    low, high = scores.min(), scores.max()
    if not (low >= 0 and high <= 1):
        raise UsageError(
            f"heatmap must lie in [0, 1] without NaN, got {low} to {high}; use score_heatmap()"
        )


def quantise(scores: Array) -> Array:
    """Rounds a heatmap down to the 256 levels that boxes are found on.

    Args:
        scores: floating [H, W] in [0, 1].

    Returns:
        uint8 [H, W], floor(255 s).

    Raises:
        UsageError: the array is no heatmap.

    >>> quantise(np.array([[0.0, 0.5, 1.0]]))
    array([[  0, 127, 255]], dtype=uint8)
    """
    check_scores(scores)
    levels: Array = (scores * 255).astype(np.uint8)
    return levels


def scale_boxes(boxes: npt.ArrayLike, image_size: tuple[int, int], size: int = SIZE) -> Array:
    """Moves ground-truth boxes from the image to the protocol's square.

    Each coordinate is multiplied by size / side and truncated; both corners belong to the box.

    Args:
        boxes: numbers [n, 4] or [4], (x0, y0, x1, y1) in pixels, 0 <= x0 <= x1, 0 <= y0 <= y1.
        image_size: width and height of the image in pixels.
        size: side of the square in pixels.

    Returns:
        int64 [n, 4].

    Raises:
        UsageError: no box, a negative or inverted one, or a size below 1.

    >>> scale_boxes([0, 0, 499, 374], (500, 375))
    array([[  0,   0, 223, 223]])
    """
    given = np.asarray(boxes, np.float64)
    given = given[None] if given.ndim == 1 else given
    if given.ndim != 2 or given.shape[1] != 4 or len(given) == 0:
        raise UsageError(f"boxes must be [n, 4] with n >= 1, got shape {list(given.shape)}")
    wrong = ~((given >= 0).all(1) & (given[:, 2] >= given[:, 0]) & (given[:, 3] >= given[:, 1]))
    if wrong.any():
        raise UsageError(
            "a box must be (x0, y0, x1, y1) with 0 <= x0 <= x1 and 0 <= y0 <= y1, "
            f"got {given[wrong][0].tolist()}"
        )
    width, height = image_size
    if width < 1 or height < 1:
        raise UsageError(f"image size must be at least 1x1, got {width}x{height}")
    # First times, then by: the other order rounds differently, and truncation shows it.
    scaled = given * float(size) / np.array([width, height, width, height], np.float64)
    return scaled.astype(np.int64)


def pixel_labels(masks: Sequence[Array], ignore: Array | None = None, size: int = SIZE) -> Array:
    """Puts an image's masks together on the protocol's square.

    Args:
        masks: at least one [H, W], bool or number; a pixel is set where it is > 0.5 after
            resizing by nearest neighbour (OpenCV's INTER_NEAREST). Set in any: foreground.
        ignore: the same for the region that doesn't count; foreground wins over it.
        size: side of the square in pixels.

    Returns:
        uint8 [size, size]: 0 background, 1 foreground, 255 ignored.

    Raises:
        UsageError: no mask, or one that isn't [H, W].

    >>> object, border = np.array([[1, 0]]), np.array([[1, 1]])
    >>> pixel_labels([object], border, size=2)
    array([[  1, 255],
           [  1, 255]], dtype=uint8)
    """
    if not masks:
        raise UsageError("an image needs at least one mask, got none")
    foreground = np.zeros((size, size), bool)
    for mask in masks:
        foreground |= _resized(mask, size)
    labels = foreground.astype(np.uint8)
    if ignore is not None:
        labels[_resized(ignore, size) & ~foreground] = IGNORED
    return labels


def _resized(mask: Array, size: int) -> Array:
    """Resizes a mask [H, W] to bool [size, size]."""
    if mask.ndim != 2 or mask.size == 0:
        raise UsageError(f"mask must be a non-empty array [H, W], got shape {list(mask.shape)}")
    resized = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_NEAREST)
    return np.asarray(resized) > 0.5


def _span(axis: Axis, size: int) -> tuple[int, int]:
    """Returns the first pixel of the square that a CAM covers, and the one after the last."""
    if axis.low == 0 and axis.high == axis.size and axis.shown == axis.length:
        return 0, size  # less than one input pixel may be cut off for the box average
    scale = axis.used / axis.shown
    edges = (axis.start - axis.first * scale, axis.start + (axis.length - axis.first) * scale)
    low, high = (round(edge * size / axis.size) for edge in edges)
    return low, max(high, low + 1)
