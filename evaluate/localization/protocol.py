"""The conventions of the evaluation protocol of Choe et al. 2020, in one place.

Source: "Evaluating Weakly Supervised Object Localization Methods Right" (CVPR 2020) and its
code, wsolevaluation, in the version with MaxBoxAccV2. The numbers follow the code, not the
paper, where the two differ: thresholds are np.arange(0, 1, 0.001), which are the 1,000
values 0, 0.001, ..., 0.999 (at 1 no pixel lies above the largest, so it could only count
ground-truth boxes of a few pixels at the corner). PxAP has one class of scores more, those
that are exactly 1: 1,001 in all.

Maps where the protocol wants them: on its square, which stands for the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from sigcam.core.errors import UsageError
from sigcam.images.preprocess import Axis, Placement

# Maps, masks and boxes are compared on a square of this side.
SIZE = 224
THRESHOLDS: npt.NDArray[np.float64] = np.arange(0, 1, 0.001)
IOU_THRESHOLDS = (0.3, 0.5, 0.7)
# Values of a mask as `pixel_labels` makes it.
BACKGROUND, FOREGROUND, IGNORED = 0, 1, 255


def score_heatmap(cam: npt.NDArray[np.floating], size: int = SIZE) -> npt.NDArray[np.float64]:
    """Enlarges a CAM to the protocol's square and normalises it, in that order.

    Bicubic (OpenCV's INTER_CUBIC, a = -0.75) in float64, then min-max. The overshoot of the
    bicubic kernel is part of the protocol. The CAM is taken to cover the whole image, as
    it does for the resize rule "stretch"; `placing.place_scores` is for the others.

    Args:
        cam: floating [h, w], any range; usually ReLU'd evidence, >= 0.
        size: side of the square in pixels.

    Returns:
        float64 [size, size] in [0, 1], reaching both. All zero where the enlarged map is
        constant or has a NaN (a map with `valid = False`): the protocol's definition.

    Raises:
        UsageError: the CAM isn't a non-empty array [h, w].
    """
    return normalise(enlarge(cam, size, size))


def enlarge(cam: npt.NDArray[np.floating], height: int, width: int) -> npt.NDArray[np.float64]:
    """The CAM [h, w] at another size, bicubic: float64 [height, width].

    Raises:
        UsageError: the CAM isn't a non-empty array [h, w].
    """
    if cam.ndim != 2 or cam.size == 0:
        raise UsageError(f"CAM must be a non-empty array [h, w], got shape {list(cam.shape)}")
    size = (width, height)
    resized = cv2.resize(cam.astype(np.float64), size, interpolation=cv2.INTER_CUBIC)
    return np.array(resized, np.float64)


def normalise(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Min-max to [0, 1], a new array [H, W]; all zero where constant or with a NaN."""
    if values.size == 0:
        return np.zeros(values.shape)
    low, high = values.min(), values.max()
    if np.isnan(low) or low == high:
        return np.zeros(values.shape)
    scores: npt.NDArray[np.float64] = values - low
    scores /= scores.max()
    return scores


def check_scores(scores: npt.NDArray[np.floating]) -> None:
    """Refuses what isn't a score map: floating [H, W] in [0, 1] without NaN."""
    if scores.ndim != 2 or scores.size == 0 or not np.issubdtype(scores.dtype, np.floating):
        raise UsageError(
            f"score map must be floating [H, W], got {scores.dtype} {list(scores.shape)}"
        )
    low, high = scores.min(), scores.max()
    if not (low >= 0 and high <= 1):
        raise UsageError(
            f"score map must lie in [0, 1] without NaN, got {low} to {high}; use score_heatmap()"
        )


def quantise(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Score map [H, W] in [0, 1] as uint8: floor(255 s), as the boxes are found on."""
    check_scores(scores)
    return (scores * 255).astype(np.uint8)


def scale_boxes(
    boxes: npt.ArrayLike, image_size: tuple[int, int], size: int = SIZE
) -> npt.NDArray[np.int64]:
    """Moves ground-truth boxes from the image to the protocol's square.

    Each coordinate is multiplied by size / side and truncated; both corners belong to the box.

    Args:
        boxes: numbers [n, 4] or [4], (x0, y0, x1, y1) in pixels, 0 <= x0 <= x1, 0 <= y0 <= y1.
        image_size: width and height in pixels.
        size: side of the square.

    Returns:
        int64 [n, 4].

    Raises:
        UsageError: no box, a negative or inverted one, or a size below 1.
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


def pixel_labels(
    masks: Sequence[npt.NDArray[np.generic]],
    ignore: npt.NDArray[np.generic] | None = None,
    size: int = SIZE,
) -> npt.NDArray[np.uint8]:
    """Puts an image's masks together on the protocol's square.

    Args:
        masks: at least one [H, W], bool or number; a pixel is set where it is > 0.5 after
            resizing by nearest neighbour (OpenCV's INTER_NEAREST). Set in any: foreground.
        ignore: the same for the region that doesn't count; foreground wins over it.
        size: side of the square.

    Returns:
        uint8 [size, size]: 0 background, 1 foreground, 255 ignored.

    Raises:
        UsageError: no mask, or one that isn't [H, W].
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


def _resized(mask: npt.NDArray[np.generic], size: int) -> npt.NDArray[np.bool_]:
    if mask.ndim != 2 or mask.size == 0:
        raise UsageError(f"mask must be a non-empty array [H, W], got shape {list(mask.shape)}")
    resized = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_NEAREST)
    return np.asarray(resized) > 0.5


Floats = npt.NDArray[np.float64]


def place_scores(
    cam: npt.NDArray[np.floating], placement: Placement, size: int = SIZE
) -> tuple[Floats, bool]:
    """The score map of a CAM on the protocol's square.

    The protocol resizes images to the network's input whatever their aspect, so that a CAM
    covers the whole image; such a CAM is treated exactly as there. With the resize rules "crop"
    and "letterbox" a CAM covers a part of the image or more than it: it is enlarged to the
    rectangle that it covers on the square, in whole pixels, and normalised over what is inside the
    image; where the network saw nothing, the score is 0.

    Args:
        cam: floating [h, w].
        placement: of the network's input in the image.
        size: side of the square.

    Returns:
        float64 [size, size] in [0, 1], and whether the map is valid (not constant).
    """
    (y0, y1), (x0, x1) = _span(placement.rows, size), _span(placement.columns, size)
    if (y0, y1, x0, x1) == (0, size, 0, size):
        scores = score_heatmap(cam, size)
        return scores, bool(scores.any())
    part = enlarge(cam, y1 - y0, x1 - x0)
    inside = normalise(part[max(0, -y0) : size - y0, max(0, -x0) : size - x0])
    scores = np.zeros((size, size))
    scores[max(0, y0) : y1, max(0, x0) : x1] = inside
    return scores, bool(inside.any())


def _span(axis: Axis, size: int) -> tuple[int, int]:
    """First and last pixel (the latter just outside) of the square that a CAM covers."""
    if axis.low == 0 and axis.high == axis.size and axis.shown == axis.length:
        return 0, size  # less than one input pixel may be cut off for the box average
    scale = axis.used / axis.shown
    edges = (axis.start - axis.first * scale, axis.start + (axis.length - axis.first) * scale)
    low, high = (round(edge * size / axis.size) for edge in edges)
    return low, max(high, low + 1)
