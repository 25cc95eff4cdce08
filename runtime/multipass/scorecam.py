"""Score-CAM: a channel weighs as much as what it shows of the image scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.progress import Report
from sigcam.core.spec import Preprocessing
from sigcam.core.types import Array
from sigcam.images.preprocess import Axis, Placement
from sigcam.images.upsample import to_heatmap
from sigcam.runtime.model import ExportedModel
from sigcam.runtime.multipass.base import NO_OPTIONS, MultiPass, Subject
from sigcam.runtime.multipass.masked_input import MaskedInput


class ScoreCam(MultiPass):
    """Score-CAM of Wang et al. (2020), Algorithm 1; Beyond Softmax, Eq. 7.

    For every channel F_n: M_n = min-max(upsample(F_n)), at the input's size (bilinear,
    half-pixel centres); s_n = score(x * M_n); w = softmax over n of s_n. Then
    cam = max(0, sum_n w_n F_n), as for the other methods.

    - The score is the class's logit in the branch that the artifact's CAM weights come from:
      the pre-sigmoid logit of the sigmoid branch, or the logit before softmax. The increase
      of confidence over a baseline image, s_n - s(baseline), has the same softmax, so no
      baseline is run.
    - x * M_n is taken in normalised space, where 0 is the mean colour (`MaskedInput`).
    - A channel whose mask is constant shows nothing of the image. It isn't run, takes no
      part in the softmax, and gets the weight 0, as in the authors' code (which weighs by the
      probabilities of single masked images instead, unlike their Algorithm 1). The package
      grad-cam runs it with a black mask, and upsamples with aligned corners.
    - Softmax weights are positive, so clamping (NWC) changes nothing.

    Passes: one over the network, and one for each channel that isn't constant: N + 1 at
    most. The masked runs serve all K classes at once.
    """

    name: ClassVar[str] = "scorecam"
    from_features: ClassVar[bool] = False

    def __init__(
        self, model: ExportedModel, batch_size: int, options: Mapping[str, float] = NO_OPTIONS
    ) -> None:
        super().__init__(model, batch_size, options)
        if model.scores_output is None:
            raise UsageError(
                "scorecam needs the sigmoid branch's score of one class in every masked image, "
                f"but this artifact chooses its classes itself ({model.spec.classes.mode}); export "
                "it with `sigcam export --classes input` or `--sigmoid-logits`"
            )

    @property
    def most_passes(self) -> int:
        """Returns N + 1."""
        return self.channels + 1

    def cams(self, subject: Subject, report: Report) -> tuple[Array, int]:
        """Makes the CAMs; see `MultiPass.cams`."""
        features, total = subject.features, self.most_passes
        if subject.tensor is None:
            raise UsageError("scorecam runs the whole network, so it needs the image itself")
        masked = MaskedInput(subject.tensor, self.model.spec.preprocessing)
        kept: list[int] = []
        scores: list[Array] = []
        done = 1
        report(done, total)
        for channels, masks in self._batches(features):
            scores.append(self.model.scores(masked(masks), subject.class_ids))
            kept += channels
            done = channels[-1] + 2  # the constant ones between need no run
            report(done, total)
        if done < total:
            report(total, total)
        weights = np.zeros((len(subject.class_ids), len(features)))
        if kept:
            weights[:, kept] = _softmax(self.finite(np.concatenate(scores)).T)
        return self.combined(weights, features), 1 + len(kept)

    def _batches(self, features: Array) -> Iterator[tuple[list[int], list[Array]]]:
        """Yields channels that aren't constant and their masks [H, W], `batch_size` at a time."""
        whole = _whole(self.model.spec.preprocessing)
        channels: list[int] = []
        masks: list[Array] = []
        for channel, values in enumerate(features):
            mask, valid = to_heatmap(values, whole)
            if valid:
                channels.append(channel)
                masks.append(mask)
            if len(masks) == self.batch_size:
                yield channels, masks
                channels, masks = [], []
        if masks:
            yield channels, masks


def _whole(preprocessing: Preprocessing) -> Placement:
    """Places an image that is the input itself, so that heatmaps come at the input's size."""
    rows, columns = (
        Axis(size, 0, size, 1, 0, size, size)
        for size in (preprocessing.height, preprocessing.width)
    )
    return Placement(rows, columns)


def _softmax(scores: Array) -> Array:
    """Computes the softmax over the last axis, shifted so that no exponential overflows."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
