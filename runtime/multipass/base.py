"""The contract of a CAM method that needs several passes, or no gradient."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from sigcam.core.errors import BackendError, UsageError
from sigcam.core.progress import Report
from sigcam.core.types import Array
from sigcam.kernels.reference import clamp_combine
from sigcam.runtime.model import ExportedModel

NO_OPTIONS: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Subject:
    """One image and the classes that heatmaps are wanted for.

    Attributes:
        features: float32 [N, h, w], from the first pass over the network; empty for a method
            that doesn't look at them.
        class_ids: int64 [K], 0 <= id < C.
        tensor: the network's input without the batch axis; None where only the features
            are left (`Explanation.for_classes`).
    """

    features: Array
    class_ids: Array
    tensor: Array | None = None


class MultiPass(abc.ABC):
    """Makes CAMs from an artifact's features, whatever the artifact's own method is.

    Nothing that changes is kept between calls, so one object serves several threads.

    Attributes:
        name: as in the registry.
        class_agnostic: whether the CAM is the same for every class.
        from_features: whether an image's features are all that is needed of it.
        needs_features: whether it looks at the features at all.
        defaults: the numbers that the method can be called with, by name.
        options: those numbers as they are in this object.
    """

    name: ClassVar[str]
    class_agnostic: ClassVar[bool] = False
    from_features: ClassVar[bool] = True
    needs_features: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, float]] = NO_OPTIONS

    def __init__(
        self, model: ExportedModel, batch_size: int, options: Mapping[str, float] = NO_OPTIONS
    ) -> None:
        """Checks that the model has what the method needs.

        Args:
            model: runs the network and its head graph.
            batch_size: most images in one run of the network.
            options: numbers by name; what is left out gets its default.

        Raises:
            UsageError: an option that the method doesn't have; or the model has several target
                layers, or lacks an output.
        """
        self.model, self.batch_size = model, batch_size
        self.options = self._completed(options)
        if self.needs_features:
            self._check_features()

    @property
    def channels(self) -> int:
        """Returns N, the number of channels of the features."""
        return self.model.spec.feature_shapes[0][0]

    @property
    @abc.abstractmethod
    def most_passes(self) -> int:
        """Counts the most passes over network and head for one image, the first one included."""

    @abc.abstractmethod
    def cams(self, subject: Subject, report: Report) -> tuple[Array, int]:
        """Makes the CAMs of one image.

        Args:
            subject: the image, after the first pass over the network.
            report: called with the passes done and the passes in all after each run.

        Returns:
            CAMs, float32 [K, h, w] at the features' resolution (rise: at the input's), >= 0
            unless the spec says signed, and the number of passes that they took: over the
            network and the head together, the first one included.

        Raises:
            BackendError: the backend failed, or a score isn't finite.
        """

    def combined(self, weights: Array, features: Array) -> Array:
        """Combines CAMs [K, h, w] of weights [K, N] and features [N, h, w], by `clamp_combine`."""
        used = weights.astype(np.float32)[None]
        spec = self.model.spec
        cams = clamp_combine(features[None], used, clamp=spec.nwc, signed=spec.signed)
        return np.asarray(cams[0])

    def finite(self, scores: Array) -> Array:
        """Returns the scores in float64, once they are known to be finite.

        Raises:
            BackendError: one of them isn't finite.
        """
        if not np.isfinite(scores).all():
            raise BackendError(
                f"{self.name} met a score that is not finite: the model's weights overflow on "
                "changed inputs; check the classifier and export it again"
            )
        return np.asarray(scores, np.float64)

    def _completed(self, options: Mapping[str, float]) -> dict[str, float]:
        unknown = sorted(options.keys() - self.defaults.keys())
        if unknown:
            raise UsageError(
                f"{' and '.join(unknown)} is no option of {self.name}"
                + (f", which has {', '.join(self.defaults)}" if self.defaults else "")
                + "; leave it out"
            )
        return {**self.defaults, **options}

    def _check_features(self) -> None:
        model = self.model
        layers = len(model.spec.target_layers)
        if layers > 1:
            raise UsageError(
                f"{self.name} makes its CAMs of one target layer, this artifact has {layers}; "
                "export it with one --target-layer and `--features`"
            )
        if "features" not in model.output_names:
            raise UsageError(
                f"{self.name} needs the artifact's features; export it with "
                "`sigcam export --features` or `--profile split`"
            )
