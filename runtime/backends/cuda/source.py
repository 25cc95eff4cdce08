"""What heatmaps are made of: tensors that a network left in device memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sigcam.core.errors import ArtifactError
from sigcam.kernels.checks import alignment
from sigcam.kernels.shapes import Cams, Inputs
from sigcam.runtime.backends.base import HeatmapRequest


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor in device memory.

    Attributes:
        address: where its first element lies.
        dtype, shape: as NumPy's; it is C-contiguous.

    Example:
        >>> DeviceTensor(0x1000, np.dtype(np.int64), (2, 5)).nbytes
        80
    """

    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Returns the bytes of all elements."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def image(self, number: int) -> int:
        """Returns where the part of the batch begins that belongs to an image.

        Example:
            >>> tensor = DeviceTensor(0x1000, np.dtype(np.float32), (2, 3, 4))
            >>> tensor.image(1) - tensor.address  # 12 floats on
            48
        """
        elements = int(np.prod(self.shape[1:], dtype=np.int64))
        return self.address + number * elements * self.dtype.itemsize


@dataclass(frozen=True)
class WeightedFeatures:
    """Features [B, N, h, w] and CAM weights [B, K, N] or [B, K, N, h, w], of which CAMs are made.

    Attributes:
        features, weights: of the same type, float32 or float16.
    """

    features: DeviceTensor
    weights: DeviceTensor

    @property
    def classes(self) -> int:
        """Returns K."""
        return self.weights.shape[1]

    def inputs(self, first: int, count: int, request: HeatmapRequest) -> Inputs:
        """Describes `count` images from the `first` on, as the kernels want it."""
        _, channels, height, width = self.features.shape
        return Inputs(
            batch=count,
            channels=channels,
            height=height,
            width=width,
            classes=self.classes,
            half=self.features.dtype == np.float16,
            per_position=len(self.weights.shape) == 5,
            clamp=request.clamp,
            signed=request.signed,
            alignment=alignment(self.features.image(first) | self.weights.image(first)),
        )

    def addresses(self, first: int) -> dict[str, int]:
        """Returns where they begin for the `first` image, by the names that `launch` has."""
        return {"features": self.features.image(first), "weights": self.weights.image(first)}


@dataclass(frozen=True)
class FinishedCams:
    """CAMs float32 [B, K, h, w] that the network made itself.

    Attributes:
        cams: the tensor.
    """

    cams: DeviceTensor

    @property
    def classes(self) -> int:
        """Returns K."""
        return self.cams.shape[1]

    def inputs(self, first: int, count: int, request: HeatmapRequest) -> Cams:
        """Describes `count` images, as the kernels want it."""
        del first, request  # clamped and signed they are already
        return Cams(count, *self.cams.shape[1:])

    def addresses(self, first: int) -> dict[str, int]:
        """Returns where they begin for the `first` image, by the name that `launch` has."""
        return {"cams": self.cams.image(first)}


Source = WeightedFeatures | FinishedCams


def source_of(outputs: Mapping[str, DeviceTensor], images: int) -> Source:
    """Returns what heatmaps are made of.

    Args:
        outputs: CAMs, or features and CAM weights, by the names of the graph's outputs.
        images: number of images.

    Raises:
        ArtifactError: shapes or types that don't belong together, or that the kernels don't take.

    Example:
        >>> features = DeviceTensor(0x1000, np.dtype(np.float32), (2, 512, 7, 7))
        >>> weights = DeviceTensor(0x9000, np.dtype(np.float32), (2, 5, 512))
        >>> source_of({"features": features, "cam_weights": weights}, images=2).classes
        5
        >>> source_of({"cams": weights}, images=2)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.core.errors.ArtifactError: the CAMs must be float32 [2, K, h, w] to make heatmaps ...
    """
    if "cams" in outputs:
        return FinishedCams(_checked_cams(outputs["cams"], images))
    features, weights = outputs["features"], outputs["cam_weights"]
    _check_weighted(features, weights, images)
    return WeightedFeatures(features, weights)


def _checked_cams(cams: DeviceTensor, images: int) -> DeviceTensor:
    shape = cams.shape
    fits = len(shape) == 4 and shape[0] == images and 0 not in shape
    if not fits or cams.dtype != np.float32:
        advice = "export the model again"
        if fits and cams.dtype == np.float16:
            advice = (
                "build the plan with outputs of float32 (trtexec --outputIOFormats=fp32:chw), or "
                "the engine with `sigcam build-engine`"
            )
        raise ArtifactError(
            f"the CAMs must be float32 [{images}, K, h, w] to make heatmaps of, got {cams.dtype} "
            f"{list(shape)}; {advice}"
        )
    return cams


def _check_weighted(features: DeviceTensor, weights: DeviceTensor, images: int) -> None:
    shape, other = features.shape, weights.shape
    fits = len(shape) == 4 and len(other) in (3, 5) and shape[0] == other[0] == images
    if (
        not fits
        or other[2] != shape[1]
        or (len(other) == 5 and other[3:] != shape[2:])
        or features.dtype != weights.dtype
        or features.dtype not in (np.float32, np.float16)
        or 0 in (*shape, *other)
    ):
        raise ArtifactError(
            f"the graph's outputs don't belong together: the weights must be [{images}, K, N] or "
            f"[{images}, K, N, h, w] for features [{images}, N, h, w] of the same type, got "
            f"{weights.dtype} {list(other)} and {features.dtype} {list(shape)}; export the model "
            "again"
        )
