"""The paper's own figures, to stand beside ours where the data set is one of the paper's.

They are in figures.json, which names the paper. GT-known and Top-1 Loc are the paper's at the
threshold 0.2, so they stand beside ours at that threshold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.datasets.paper.recipe import Variant

FILE = Path(__file__).with_name("figures.json")

DATASETS = ("cub", "cars", "imagenet", "openimages")
"""The paper's data sets, by the names that the benchmark has for them."""

BACKBONES = {
    "wsol-vgg16": "VGG-16", "vgg16": "VGG-16",
    "wsol-resnet50": "ResNet-50", "resnet50": "ResNet-50",
    "wsol-inceptionv3": "InceptionV3", "inception_v3": "InceptionV3",
}  # fmt: skip
"""Architecture to the paper's name for it."""

_METHODS = {
    "cam": "CAM", "gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "xgradcam": "XGrad-CAM",
    "layercam": "Layer-CAM",
}  # fmt: skip
_METRICS = {
    "average_drop": "average_drop", "increase": "increase", "top1_cls": "top1_cls",
    "top1_loc": "top1_loc", "gt_known": "gt_known_loc", "max_box_acc_v2": "max_box_acc_v2",
    "pxap": "pxap",
}  # fmt: skip
"""Key of our metric to the paper's."""


def read_figures() -> dict[str, Any]:
    """Reads everything that figures.json has."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class PaperFigures:
    """The paper's figures of one data set.

    Attributes:
        dataset: one of `DATASETS`.
        arch: the architecture that they stand beside. If it is one of the paper's, only that
            backbone's figures count, else those of all.
    """

    dataset: str
    arch: str
    _all: Mapping[str, Any] = field(default_factory=read_figures, repr=False)

    def rows(self, number: str, variant: Variant, num_classes: int) -> dict[str, dict[str, float]]:
        """Looks up what stands beside a row of ours.

        Args:
            number: of the table.
            variant: the row.
            num_classes: C of the data that ours is of. Positive weights are matched by what they
                are (1, (C-1)/2, C-1), not by their size.

        Returns:
            Backbone to key of a metric to the paper's figure; empty where it has none.
        """
        if variant.shift is not None:
            return {}
        found: dict[str, dict[str, float]] = {}
        for row in self._rows_of(number):
            if row["backbone"] in self.backbones and self._is_same(row, variant, num_classes):
                values = {ours: row[theirs] for ours, theirs in _METRICS.items() if theirs in row}
                found[row["backbone"]] = values
        return found

    @property
    def backbones(self) -> tuple[str, ...]:
        """Returns the names of the backbones whose figures count."""
        own = BACKBONES.get(self.arch)
        return tuple(dict.fromkeys(BACKBONES.values())) if own is None else (own,)

    def differences(self, here: str, train_images: str, test_images: int, num_classes: int) -> str:
        """Says what the paper did otherwise than this run.

        Args:
            here: how this run trained, in words.
            train_images: the number of images that it trained on, in words.
            test_images: the number of images that it scored.
            num_classes: C of its data.
        """
        data, training = self._all["datasets"][self.dataset], self._all["training"]
        known = BACKBONES.get(self.arch)
        backbone = (
            f"the paper has {known}" if known else "which the paper has not: all its backbones"
        )
        return (
            f'Rows "paper" are the figures of "Beyond Softmax" on {data["name"]}. What differs: '
            f"architecture: {self.arch} here, {backbone}; "
            f"split: {train_images} images to train on and {test_images} scored, of "
            f"{num_classes} classes, here, {data['train']} and {data['test']}, of "
            f"{data['classes']} classes, in the paper; "
            f"training: {here} here, {training['optimizer']}, batches of "
            f"{training['batch_size']} and up to {data['epochs']} epochs with new crops and flips "
            "in each in the paper. The paper's GT-known and Top-1 Loc are at the threshold 0.2; it "
            "tells no intervals.\n"
        )

    def _rows_of(self, number: str) -> list[dict[str, Any]]:
        """Returns the rows of a table that are of this data set, with their metrics flat."""
        name = self._all["datasets"][self.dataset]["name"]
        if number == "1":
            return [row for row in self._all["table1"] if row["dataset"] == name]
        if number == "2":
            rows = [row for row in self._all["table2"] if self.dataset in row]
            return [{**row, **row[self.dataset]} for row in rows]
        if number in ("4", "5") and self.dataset == "imagenet":
            rows = self._all[f"table{number}"]
            return list(rows)
        return []

    def _is_same(self, row: Mapping[str, Any], variant: Variant, num_classes: int) -> bool:
        if variant.signed or (row["method"], row["branch"]) != (
            _METHODS.get(variant.method),
            variant.branch,
        ):
            return False
        if "nwc" in row and row["nwc"] != variant.nwc:
            return False
        if "positive_weight" not in row:
            return True
        weights = sorted({r["positive_weight"] for r in self._all["table5"]} - {None})
        ours = [1.0, (num_classes - 1) / 2, float(num_classes - 1)]
        # From the largest: with two or three classes some of them are equal.
        places = [i for i in (2, 1, 0) if ours[i] == variant.positive_weight]
        return bool(places) and row["positive_weight"] == weights[places[0]]
