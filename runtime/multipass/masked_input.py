"""The network's input seen through masks, for the methods that hide parts of an image."""

from __future__ import annotations

import cv2
import numpy as np

from sigcam.core.spec import Preprocessing
from sigcam.core.types import Array


class MaskedInput:
    """The network's input seen through masks.

    Where a mask is 1 the input stays, where it is 0 it is the mean colour, which is 0 in
    normalised space. An artifact that takes bytes gets mean + (pixel - mean) * mask, rounded: an
    error of at most 0.5 / (255 std) of the normalised value. A mean outside 0 to 255 counts as 0
    or 255.

    Example:
        >>> from sigcam.core.spec import Preprocessing
        >>> preprocessing = Preprocessing(1, 2, mean=(0, 0, 0), std=(1, 1, 1))
        >>> masked = MaskedInput(np.full((1, 2, 3), 200, np.uint8), preprocessing)
        >>> masked([np.array([[1.0, 0.25]], np.float32)])[0, 0, :, 0].tolist()
        [200, 50]
    """

    def __init__(self, tensor: Array, preprocessing: Preprocessing) -> None:
        """Takes one input.

        Args:
            tensor: uint8 [H, W, 3] or float32 [3, H, W], as the artifact takes it.
            preprocessing: its layout and mean count.
        """
        self._pixels = tensor
        self._half_up: Array | None = None
        if preprocessing.layout == "uint8_nhwc":
            mean = [255 * min(max(value, 0.0), 1.0) for value in preprocessing.mean]
            centre = np.array(mean, np.float32)
            self._pixels = tensor.astype(np.float32) - centre
            self._half_up = np.empty_like(self._pixels)
            self._half_up[:] = centre + np.float32(0.5)  # cut off, this rounds

    def __call__(self, masks: list[Array]) -> Array:
        """Returns a batch of inputs in the artifact's layout, one for each float32 mask [H, W]."""
        if self._half_up is None:
            return np.asarray(self._pixels * np.stack(masks)[:, None])
        out = np.empty((len(masks), *self._pixels.shape), np.uint8)
        product = np.empty_like(self._pixels)
        for row, mask in zip(out, masks, strict=True):
            # A mask for each colour: NumPy takes three times as long to repeat one over the
            # innermost axis, and eight times as long to interleave three planes.
            np.multiply(self._pixels, cv2.merge([mask, mask, mask]), out=product)
            product += self._half_up
            np.copyto(row, product, casting="unsafe")
        return out
