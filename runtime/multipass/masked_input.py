"""The network's input seen through masks, for the methods that hide parts of an image."""

from __future__ import annotations

import cv2
import numpy as np

from sigcam.core.spec import Preprocessing
from sigcam.core.types import Array


class MaskedInput:
    """The network's input seen through masks.

    Where a mask is 1 the input stays, where it is 0 it is the mean colour, which is 0 in
    normalised space. An artifact that takes raw pixels gets mean + (pixel - mean) * mask. Bytes
    are rounded: an error of at most 0.5 / (255 std) of the normalised value; there, a mean outside
    0 to 255 counts as 0 or 255.

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
            tensor: raw [H, W, n] or normalised float32 [n, H, W], as the artifact takes it.
            preprocessing: its layout, scale and mean count.
        """
        self._pixels = tensor
        self._dtype = tensor.dtype
        self._centre: Array | None = None
        if preprocessing.layout != "float32_nchw":
            mean = preprocessing.scale * np.array(preprocessing.mean)
            if preprocessing.takes_bytes:
                mean = mean.clip(0, 255)
            centre = mean.astype(np.float32)
            self._pixels = tensor.astype(np.float32) - centre
            self._centre = np.empty_like(self._pixels)
            half = 0.5 if preprocessing.takes_bytes else 0.0  # cut off, a byte is then rounded
            self._centre[:] = centre + np.float32(half)

    def __call__(self, masks: list[Array]) -> Array:
        """Returns a batch of inputs in the artifact's layout, one for each float32 mask [H, W]."""
        if self._centre is None:
            return np.asarray(self._pixels * np.stack(masks)[:, None])
        out = np.empty((len(masks), *self._pixels.shape), self._dtype)
        product = np.empty_like(self._pixels)
        for row, mask in zip(out, masks, strict=True):
            # A mask for each channel: NumPy takes three times as long to repeat one over the
            # innermost axis, and eight times as long to interleave three planes.
            masks_of_all = cv2.merge([mask] * product.shape[2]).reshape(product.shape)
            np.multiply(self._pixels, masks_of_all, out=product)
            product += self._centre
            np.copyto(row, product, casting="unsafe")
        return out
