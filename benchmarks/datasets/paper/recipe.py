"""From a classifier and samples to the artifacts of a table."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sigcam.classifier.build import build_classifier
from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.spec import ClassSelection, Preprocessing
from sigcam.data import Dataset
from sigcam.demo.shift import Shift, shift_softmax
from sigcam.export import ExportOptions, export_artifact
from sigcam.train.augment import Augmentation
from sigcam.train.loop import fit_sigmoid_head, fit_softmax_head
from sigcam.train.settings import Reading, TrainSettings
from sigcam.train.views import TrainingViews


@dataclass(frozen=True)
class Variant:
    """One artifact of a table.

    Attributes:
        method: of the map.
        branch: "softmax" or "sigmoid".
        nwc: negative-weight clamping; None for the method's own.
        signed: whether the weighted sum keeps its sign, as in the code of Choe et al. for cam.
        positive_weight: of the loss that the sigmoid branch was trained by; None: C - 1.
        shift: what is added to every class's weights of the softmax branch; None for nothing.
    """

    method: str = "cam"
    branch: str = "sigmoid"
    nwc: bool | None = None
    positive_weight: float | None = None
    shift: Shift | None = None
    signed: bool = False

    @property
    def name(self) -> str:
        """Of its file."""
        nwc = "" if self.nwc is None else "-nwc" if self.nwc else "-unclamped"
        nwc += "-signed" if self.signed else ""
        weight = "" if self.positive_weight is None else f"-w{self.positive_weight:g}"
        shift = "" if self.shift is None else f"-shift-{self.shift.name}"
        return f"{self.method}-{self.branch}{nwc}{weight}{shift}.onnx"


PROBE = TrainSettings(optimizer="lbfgs", weight_decay=1e-3)
"""How a last layer for other classes is trained: to the one minimum, whatever the seed."""


@dataclass(frozen=True)
class Recipe:
    """How networks are made.

    Attributes:
        arch: of the classifier, as for `sigcam train`.
        weights: of the classifier; see `weights_of`.
        num_classes: of the classifier; None for the architecture's own number.
        size: of the input; None for the network's own.
        settings: of the sigmoid branch; its positive weight is each variant's.
        probe: of the softmax head, where the data have other classes than the classifier.
        augmentation: of both.
        cache_dir: of the features.
    """

    arch: str
    weights: str | None
    num_classes: int | None = None
    size: int | None = None
    settings: TrainSettings = field(default_factory=TrainSettings)
    probe: TrainSettings = field(default_factory=lambda: PROBE)
    augmentation: Augmentation = field(default_factory=Augmentation)
    cache_dir: Path | None = None


def weights_of(weights: str | None, fold: int) -> str | None:
    """The classifier's weights for a fold: {fold} in the name stands for its number."""
    return None if weights is None else weights.replace("{fold}", str(fold))


class Workshop:
    """A classifier of a data set's classes, and sigmoid branches for it, made when needed.

    Attributes:
        dual: the classifier, with the branch that was trained last.
        preprocessing: how images are prepared.
    """

    def __init__(self, recipe: Recipe, training: Dataset, num_classes: int, fold: int = 0) -> None:
        """Loads the classifier; where it has other classes, trains its last layer anew.

        Args:
            recipe: how.
            training: the data to train on, with labels.
            num_classes: C of the data.
            fold: number of the part that isn't trained on, for the name of the weights.
        """
        self._recipe = recipe
        asked: dict[str, Any] = {
            "arch": recipe.arch, "weights": weights_of(recipe.weights, fold),
            "num_classes": recipe.num_classes, "size": recipe.size,
        }  # fmt: skip
        built = build_classifier(**asked)
        remade = built.dual.num_classes != num_classes
        if remade:
            built = build_classifier(**asked, new_classes=num_classes)
        self.dual: DualBranch = built.dual
        # As the protocol of Choe et al. has it: the whole image, whatever its aspect.
        self.preprocessing: Preprocessing = replace(
            built.preprocessing, rule="stretch", resize=None
        )
        # The model is of the data's classes, whose ids are its own.
        self._views = TrainingViews(
            replace(training, ids_given=True), self.preprocessing, recipe.augmentation
        )
        self._options: dict[str, Any] = {"reading": Reading(recipe.cache_dir), "progress": False}
        if remade:
            fit_softmax_head(self.dual, self._views, recipe.probe, **self._options)
        self._fresh = copy.deepcopy(self.dual.sigmoid_head.state_dict())
        self._trained: tuple[TrainSettings, Augmentation] | None = None

    def train(self, settings: TrainSettings, augmentation: Augmentation | None = None) -> None:
        """Trains the sigmoid branch from the start.

        Args:
            settings: how.
            augmentation: on which views; None for the recipe's.
        """
        augmentation = augmentation or self._recipe.augmentation
        self.dual.sigmoid_head.load_state_dict(self._fresh)
        views = replace(self._views, augmentation=augmentation)
        fit_sigmoid_head(self.dual, views, settings, **self._options)
        self._trained = settings, augmentation

    def export(self, variant: Variant, path: Path) -> None:
        """Writes an artifact, training the branch where another one is in place."""
        wanted = replace(self._recipe.settings, positive_weight=variant.positive_weight)
        if variant.branch == "sigmoid" and self._trained != (wanted, self._recipe.augmentation):
            self.train(wanted)
        dual = self.dual if variant.shift is None else shift_softmax(self.dual, variant.shift)
        export_artifact(
            dual,
            path,
            ExportOptions(
                method=variant.method,
                branch=variant.branch,
                nwc=variant.nwc,
                signed=variant.signed,
                # The method's own way in the paper.
                purpose="localise" if variant.nwc is None else None,
                has_sigmoid=variant.branch == "sigmoid",
                classes=ClassSelection("input"),
                preprocessing=self.preprocessing,
            ),
        )
