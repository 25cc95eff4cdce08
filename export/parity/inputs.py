"""The pictures that an exported graph is tried on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from sigcam.core.spec import Geometry
from sigcam.core.types import Array

INPUTS = "2 smooth random pictures, noise, black, white (seed 0)"


def sample_pictures(geometry: Geometry) -> npt.NDArray[np.uint8]:
    """Five pictures uint8 [5, H, W, 3], always the same."""
    random = np.random.default_rng(0)
    pictures = np.zeros((5, geometry.height, geometry.width, 3), np.uint8)
    pictures[:2] = _smooth(random, geometry, 2)
    pictures[2] = random.integers(0, 256, pictures.shape[1:], np.uint8)
    pictures[4] = 255
    return pictures


def further_pictures(geometry: Geometry, count: int) -> npt.NDArray[np.uint8]:
    """More smooth random pictures, uint8 [count, H, W, 3], always the same."""
    return _smooth(np.random.default_rng(1), geometry, count)


def _smooth(random: np.random.Generator, geometry: Geometry, count: int) -> npt.NDArray[np.uint8]:
    coarse = torch.from_numpy(random.random((count, 3, 5, 5)))
    size = (geometry.height, geometry.width)
    smooth = functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
    pixels: npt.NDArray[np.float64] = smooth.permute(0, 2, 3, 1).numpy() * 255
    return np.clip(pixels, 0, 255).astype(np.uint8)


def normalised(pictures: Array, geometry: Geometry) -> Array:
    """Pictures uint8 [B, H, W, 3] as float64 [B, 3, H, W], as the network wants them."""
    mean, std = np.array(geometry.mean), np.array(geometry.std)
    scaled = (pictures.astype(np.float64) / 255 - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def feed(pictures: Array, geometry: Geometry) -> Array:
    """Pictures uint8 [B, H, W, 3] as the artifact's input `image`."""
    if geometry.layout == "uint8_nhwc":
        return np.ascontiguousarray(pictures)
    return normalised(pictures, geometry).astype(np.float32)


def as_images(pictures: Array, geometry: Geometry) -> list[Tensor]:
    """Each picture as float64 [1, 3, H, W], normalised."""
    return [torch.from_numpy(one[None]) for one in normalised(pictures, geometry)]
