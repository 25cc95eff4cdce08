"""Makes the images that an exported graph is tried on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from sigcam.core.spec import Preprocessing
from sigcam.core.types import Array

SAMPLES_IN_WORDS = "2 smooth random images, noise, black, white (seed 0)"


def sample_images(preprocessing: Preprocessing) -> Array:
    """Returns five images [5, H, W, n], always the same.

    Args:
        preprocessing: its input size and channels are the images'. They are uint8; where the
            model takes no bytes, float32 with values within two deviations of each channel's
            mean, black and white being the ends.

    Example:
        >>> sample_images(Preprocessing(8, 10)).shape
        (5, 8, 10, 3)
    """
    random = np.random.default_rng(0)
    size = (preprocessing.height, preprocessing.width, preprocessing.channels)
    images = np.zeros((5, *size), np.uint8)
    images[:2] = _smooth(random, preprocessing, 2)
    images[2] = random.integers(0, 256, images.shape[1:], np.uint8)
    images[4] = 255
    return _in_range(images, preprocessing)


def further_images(preprocessing: Preprocessing, count: int) -> Array:
    """Returns more smooth random images, [count, H, W, n], always the same.

    Args:
        preprocessing: as for `sample_images`.
        count: how many.

    Example:
        >>> further_images(Preprocessing(8, 10), 2).shape
        (2, 8, 10, 3)
    """
    return _in_range(_smooth(np.random.default_rng(1), preprocessing, count), preprocessing)


def _in_range(images: npt.NDArray[np.uint8], preprocessing: Preprocessing) -> Array:
    """Returns bytes as they are, or spread over the values that a model without bytes sees."""
    if preprocessing.takes_bytes:
        return images
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    values = preprocessing.scale * (mean + std * (images / 255 * 4 - 2))
    return values.astype(np.float32)


def _smooth(
    random: np.random.Generator, preprocessing: Preprocessing, count: int
) -> npt.NDArray[np.uint8]:
    coarse = torch.from_numpy(random.random((count, preprocessing.channels, 5, 5)))
    size = (preprocessing.height, preprocessing.width)
    smooth = functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
    pixels: npt.NDArray[np.float64] = smooth.permute(0, 2, 3, 1).numpy() * 255
    return np.clip(pixels, 0, 255).astype(np.uint8)


def normalised(images: Array, preprocessing: Preprocessing) -> Array:
    """Normalises images as the network wants them.

    Args:
        images: raw pixels [B, H, W, n], of the input's size.
        preprocessing: its scale, mean and deviation count.

    Returns:
        float64 [B, n, H, W].

    Example:
        >>> white = np.full((1, 1, 1, 3), 255, np.uint8)
        >>> preprocessing = Preprocessing(1, 1, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        >>> normalised(white, preprocessing).tolist()
        [[[[2.0]], [[2.0]], [[2.0]]]]
    """
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    scaled = (images.astype(np.float64) / preprocessing.scale - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def feed(images: Array, preprocessing: Preprocessing) -> Array:
    """Returns images as the artifact's input `image`.

    Args:
        images: raw pixels [B, H, W, n], of the input's size.
        preprocessing: its layout says whether the graph or the caller normalises.

    Returns:
        The same, or normalised float32 [B, n, H, W].

    Example:
        >>> images = np.zeros((2, 8, 10, 3), np.uint8)
        >>> feed(images, Preprocessing(8, 10, layout="uint8_nhwc")).shape
        (2, 8, 10, 3)
        >>> feed(images, Preprocessing(8, 10, layout="float32_nchw")).shape
        (2, 3, 8, 10)
    """
    if preprocessing.layout != "float32_nchw":
        return np.ascontiguousarray(images)
    return normalised(images, preprocessing).astype(np.float32)


def as_images(images: Array, preprocessing: Preprocessing) -> list[Tensor]:
    """Returns each image by itself, normalised, as float64 [1, n, H, W].

    Args:
        images: raw pixels [B, H, W, n], of the input's size.
        preprocessing: its scale, mean and deviation count.

    Example:
        >>> images = np.zeros((2, 8, 10, 3), np.uint8)
        >>> [one.shape for one in as_images(images, Preprocessing(8, 10))]
        [torch.Size([1, 3, 8, 10]), torch.Size([1, 3, 8, 10])]
    """
    return [torch.from_numpy(one[None]) for one in normalised(images, preprocessing)]
