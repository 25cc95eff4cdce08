"""The contract of a CAM method that needs several passes, or no gradient."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sigcam.core.errors import BackendError, UsageError
from sigcam.core.progress import Report
from sigcam.core.spec import Spec
from sigcam.core.types import Array
from sigcam.kernels.reference import clamp_combine
from sigcam.runtime.backends.base import Backend
from sigcam.runtime.head_graph import Head


@dataclass(frozen=True, eq=False)
class Tools:
    """What the methods work with.

    Attributes:
        spec: of the artifact.
        network: the artifact in its backend.
        head: its head graph, if the session has one.
        batch_size: most images in one run of the network.
    """

    spec: Spec
    network: Backend
    head: Head | None
    batch_size: int


@dataclass(frozen=True, eq=False)
class Subject:
    """One image and the classes that heatmaps are wanted for.

    Attributes:
        features: float32 [N, h, w], from the first pass over the network.
        class_ids: int64 [K], 0 <= id < C.
        tensor: the network's input without the batch axis; None where only the features
            are left (`Explanation.for_classes`).
    """

    features: Array
    class_ids: Array
    tensor: Array | None = None


class MultiPass(abc.ABC):
    """A method that makes heatmaps from an artifact's features, whatever its own method is.

    Nothing that changes is kept between calls, so one object serves several threads.

    Attributes:
        name: as in the registry.
        class_agnostic: whether the heatmap is the same for every class.
        from_features: whether an image's features are all that is needed of it.
    """

    name: ClassVar[str]
    class_agnostic: ClassVar[bool] = False
    from_features: ClassVar[bool] = True

    def __init__(self, tools: Tools) -> None:
        if len(tools.spec.target_layers) > 1:
            raise UsageError(
                f"{self.name} makes its heatmap of one target layer, this artifact has "
                f"{len(tools.spec.target_layers)}; export it with one --target-layer and "
                "`--features`"
            )
        self.tools = tools
        if "features" not in self.outputs:
            raise UsageError(
                f"{self.name} needs the artifact's features; export it with "
                "`sigcam export --features` or `--profile split`"
            )

    @property
    def outputs(self) -> set[str]:
        """Names of the artifact's outputs."""
        return {info.name for info in self.tools.network.outputs}

    @property
    def channels(self) -> int:
        """N, the number of channels of the features."""
        return self.tools.spec.feature_shapes[0][0]

    @property
    @abc.abstractmethod
    def most_passes(self) -> int:
        """Most passes over network and head for one image, the first one included."""

    @abc.abstractmethod
    def cams(self, subject: Subject, report: Report) -> tuple[Array, int]:
        """The heatmaps of one image at feature resolution.

        Args:
            subject: the image, after the first pass over the network.
            report: called with the passes done and the passes in all after each run.

        Returns:
            CAMs, float32 [K, h, w], >= 0, and the number of passes that they took: over the
            network and the head together, the first one included.

        Raises:
            BackendError: the backend failed, or a score isn't finite.
        """

    def combined(self, weights: Array, features: Array) -> Array:
        """CAMs [K, h, w] of weights [K, N] and features [N, h, w], by `clamp_combine`."""
        used = weights.astype(np.float32)[None]
        cams = clamp_combine(features[None], used, clamp=self.tools.spec.nwc)
        return np.asarray(cams[0])

    def finite(self, scores: Array) -> Array:
        """The scores in float64.

        Raises:
            BackendError: one of them isn't finite.
        """
        if not np.isfinite(scores).all():
            raise BackendError(
                f"{self.name} met a score that is not finite: the model's weights overflow on "
                "changed inputs; check the classifier and export it again"
            )
        return np.asarray(scores, np.float64)
