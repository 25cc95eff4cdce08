"""Ablation-CAM: a channel weighs as much as the score drops without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from sigcam.core.artifact import HOW_TO_EXPORT
from sigcam.core.errors import UsageError
from sigcam.core.progress import Report
from sigcam.core.types import Array
from sigcam.runtime.head_graph import HeadGraph
from sigcam.runtime.model import ExportedModel
from sigcam.runtime.multipass.base import NO_OPTIONS, MultiPass, Subject

_BATCH_VALUES = 2**22
"""Features in one run of the head: 16 MiB of float32."""

_INTACT = -1
"""In place of a channel: none is set to 0."""

_SMALL = 1e-6
"""Scores nearer to 0 than this don't divide."""


class AblationCam(MultiPass):
    """Ablation-CAM of Desai and Ramaswamy (2020), Eq. 2: w_n = (s - s_n) / s.

    s is the class's score and s_n the same with channel n of the features set to 0, both
    from the head graph: the pre-sigmoid logit of the sigmoid branch, or the logit before
    softmax, as the artifact's CAM weights. Then cam = max(0, sum_n w_n F_n) with negative
    weights clamped if the artifact's are (NWC).

    - The definition means scores above 0. Below, its quotient would turn every sign round,
      and with it the meaning: a channel whose loss lowers the score would count against the
      class. So |s| divides, as it also does in effect for s > 0. (The package grad-cam
      divides by s.) Within 1e-6 of 0 nothing divides. No divisor changes the normalised heatmap.
    - s and s_n differ by little, so s is computed by the same graph as s_n and not taken from
      the artifact's output, whose rounding differs.
    - A channel that is 0 everywhere has the weight 0 and isn't run.

    Passes: one over the network; one over the head for s, and one for each channel that
    isn't 0: N + 1 at most, for all K classes at once.
    """

    name: ClassVar[str] = "ablationcam"

    def __init__(
        self, model: ExportedModel, batch_size: int, options: Mapping[str, float] = NO_OPTIONS
    ) -> None:
        super().__init__(model, batch_size, options)
        if model.spec.head_input is None or model.head_graph is None:
            raise UsageError(
                "ablationcam needs the head graph, and there is none beside the artifact; "
                f"{HOW_TO_EXPORT}, or name its file by `head`"
            )
        if model.spec.head_input != "features":
            raise UsageError(
                "ablationcam sets channels of the features to 0, but this artifact's head takes "
                "more than the features (as those of vision transformers do); use scorecam"
            )
        self._head_graph: HeadGraph = model.head_graph

    @property
    def most_passes(self) -> int:
        """Returns N + 2: 1 over the network and N + 1 over the head."""
        return self.channels + 2

    def cams(self, subject: Subject, report: Report) -> tuple[Array, int]:
        """Makes the CAMs; see `MultiPass.cams`."""
        features, ids = subject.features, subject.class_ids
        # The intact features come first, in one run with others: a backend's rounding
        # depends on the size of the batch.
        items = np.concatenate(([_INTACT], np.flatnonzero(features.any(axis=(1, 2)))))
        rows = max(1, min(len(items), _BATCH_VALUES // features.size))
        batch = np.tile(features, (rows, 1, 1, 1))
        found = []
        report(1, 1 + len(items))
        for first in range(0, len(items), rows):
            chunk = items[first : first + rows]
            at = np.flatnonzero(chunk != _INTACT)
            batch[at, chunk[at]] = 0
            found.append(self._scores(batch[: len(chunk)], ids))
            batch[at, chunk[at]] = features[chunk[at]]
            report(1 + first + len(chunk), 1 + len(items))
        scores = np.concatenate(found)
        size = np.abs(scores[0])
        weights = np.zeros((len(ids), len(features)))
        weights[:, items[1:]] = ((scores[0] - scores[1:]) / np.where(size > _SMALL, size, 1)).T
        return self.combined(weights, features), 1 + len(items)

    def _scores(self, batch: Array, class_ids: Array) -> Array:
        """Scores of the classes in float64, [B, K]."""
        ids = np.tile(class_ids, (len(batch), 1))
        return self.finite(self._head_graph.run(batch, ids, ["scores"])["scores"])
