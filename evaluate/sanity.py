"""The sanity check by randomised weights: whether a map depends on what the network learnt.

Adebayo, Gilmer, Muelly, Goodfellow, Hardt and Kim, "Sanity Checks for Saliency Maps", NeurIPS
2018, Section 3.1: the layers lose what they learnt one after the other, from the output to the
input, and the map is compared with the one before. A map that stays as it was doesn't depend on
what is lost. `sigcam.export.randomise` makes the maps; PyTorch is imported when it runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.types import Array
from sigcam.evaluate.results.bootstrap import RESAMPLES, Estimate, compare
from sigcam.images.correlation import correlation, rank_correlation
from sigcam.images.decode import ImageLike
from sigcam.images.preprocess import read_input
from sigcam.images.upsample import FLAT

if TYPE_CHECKING:
    from sigcam.classifier.build import BuiltClassifier
    from sigcam.classifier.dual_branch import DualBranch
    from sigcam.export.options import ExportOptions


@dataclasses.dataclass(frozen=True)
class StageResult:
    """How much of the maps is left after a stage.

    Attributes:
        name: of the stage: "head", or the layers that lost what they learnt last.
        layers: their names, from the output to the input.
        pearson: mean over the images of Pearson's correlation with the intact network's CAM.
        spearman: the same of Spearman's rank correlation.
        constant: how many CAMs are constant or not finite. Their correlations count as 0.
    """

    name: str
    layers: tuple[str, ...]
    pearson: Estimate
    spearman: Estimate
    constant: int


@dataclasses.dataclass(frozen=True)
class SanityReport:
    """What the check found.

    Attributes:
        images: the number of images.
        method: the CAM method.
        branch: the branch that the CAM weights come from.
        nwc: whether negative weights are clamped.
        signed: whether CAMs keep the sign of the weighted sum.
        seed: what the weights were redrawn with.
        constant: how many of the intact network's CAMs are constant. They have nothing to lose,
            and count as 0 at all stages.
        stages: from the output to the input; each one's loss is on top of those before.
    """

    images: int
    method: str
    branch: str
    nwc: bool
    signed: bool
    seed: int
    constant: int
    stages: tuple[StageResult, ...]

    def as_json(self) -> dict[str, Any]:
        """Returns the report as what `json.dumps` takes.

        Example:
            >>> SanityReport(2, "cam", "sigmoid", True, False, 0, 0, ()).as_json()["method"]
            'cam'
        """
        return dataclasses.asdict(self)


def check_sanity(
    classifier: BuiltClassifier | DualBranch,
    images: Sequence[ImageLike],
    options: ExportOptions | None = None,
    *,
    seed: int = 0,
    max_stages: int | None = None,
    batch_size: int = 8,
    resamples: int = RESAMPLES,
    progress: Callable[[int, int], None] | None = None,
) -> SanityReport:
    """Compares the CAMs of a classifier with those of copies that lost what they learnt.

    CAMs are those that an exported artifact gives, computed by PyTorch, at feature resolution,
    of the class that the intact classifier predicts. "Re-initialised" is read as: the entries
    of every tensor change places at random, which keeps their distribution. The intervals are
    over the images; another seed draws other weights.

    Args:
        classifier: with its sigmoid branch, as for `export_artifact`; it isn't changed.
        images: what the maps are of: files, their contents, or arrays, of any size.
        options: method, branch, clamping and sign; the defaults when None. What they say of
            classes and files doesn't matter here.
        seed: what weights, and images for the intervals, are drawn with; at least 0.
        max_stages: the most stages below the head; 10 when None.
        batch_size: images in one pass.
        resamples: how often images are drawn for the 95% intervals.
        progress: called with the number of stages that are done, and of all.

    Returns:
        Correlations by stage.

    Raises:
        UsageError: no images, numbers out of range, or options that contradict the classifier.
        ImageError: an image can't be read.
        ExportError: the method can't express this head, or its gradient can't be traced.

    Example:
        >>> from torch import nn
        >>> from sigcam.classifier.dual_branch import DualBranch
        >>> layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        >>> dual = DualBranch(nn.Sequential(*layers), input_size=16)
        >>> image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
        >>> report = check_sanity(dual, [image])
        >>> [stage.name for stage in report.stages], report.images
        (['head', '0'], 1)
    """
    from sigcam.export.options import ExportOptions
    from sigcam.export.randomise import MAX_STAGES, Cascade

    if not len(images):
        raise UsageError("no images to compute maps of; give at least one")
    if batch_size < 1 or resamples < 1:
        raise UsageError(
            f"batch_size and resamples must be at least 1, got {batch_size} and {resamples}"
        )
    most = MAX_STAGES if max_stages is None else max_stages
    cascade = Cascade(classifier, options or ExportOptions(), seed=seed, max_stages=most)
    pixels = np.stack([read_input(image, cascade.preprocessing).tensor for image in images])
    runs = cascade.run(pixels, batch_size)
    _, intact = next(runs)
    stages = []
    for stage, (_, cams) in zip(cascade.stages, runs, strict=True):
        pearson, spearman = (
            compare([_values(metric, intact, cams)], resamples=resamples, seed=seed)[0].metric
            for metric in (correlation, rank_correlation)
        )
        stages.append(StageResult(stage.name, stage.layers, pearson, spearman, _constant(cams)))
        if progress is not None:
            progress(len(stages), len(cascade.stages))
    chosen = cascade.options
    return SanityReport(
        images=len(images),
        method=chosen.method,
        branch=chosen.branch,
        nwc=chosen.clamps,
        signed=chosen.signed,
        seed=seed,
        constant=_constant(intact),
        stages=tuple(stages),
    )


def _values(metric: Callable[[Array, Array], float], intact: Array, cams: Array) -> Array:
    """Computes a correlation for each image, float64 [P]; 0 where one of the CAMs is no map."""
    return np.array(
        [
            0.0 if _is_constant(one) or _is_constant(other) else metric(one, other)
            for one, other in zip(intact, cams, strict=True)
        ]
    )


def _constant(cams: Array) -> int:
    return sum(map(_is_constant, cams))


def _is_constant(cam: Array) -> bool:
    """Says whether a CAM is no map: constant, as everywhere, or not finite."""
    largest = np.abs(cam).max()
    return not np.isfinite(largest) or bool(np.ptp(cam) <= FLAT * largest)
