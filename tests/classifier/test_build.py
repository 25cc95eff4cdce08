"""A branch file brings its model back: architecture, weights, number of classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sigcam.classifier.branch_file import BranchInfo, save_branch
from sigcam.classifier.build import BuiltClassifier, build_classifier

NETS = """
from torch import nn

def with_count(num_classes=3):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, num_classes),
    )

def without():
    return with_count(5)
"""


def saved(built: BuiltClassifier, file: Path, weights: str | None) -> None:
    info = BranchInfo(
        architecture=built.architecture,
        branch_layer=built.dual.branch_layer,
        num_classes=built.dual.num_classes,
        preprocessing=built.preprocessing,
        trained_on="nothing",
        weights=weights,
    )
    save_branch(file, built.dual, info)


@pytest.mark.parametrize(
    ("function", "asked", "classes"),
    [("with_count", None, 3), ("with_count", 7, 7), ("without", None, 5)],
)
@pytest.mark.parametrize("from_file", [False, True])
def test_the_number_of_classes_comes_back(
    function: str, asked: int | None, classes: int, from_file: bool, tmp_path: Path
) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    arch, weights = f"{tmp_path / 'nets.py'}:{function}", None
    built = build_classifier(arch, num_classes=asked, size=16)
    if from_file:
        weights = str(tmp_path / "weights.safetensors")
        save_file({k: v + 0.5 for k, v in built.dual.classifier_tensors().items()}, weights)
        built = build_classifier(arch, weights=weights, num_classes=asked, size=16)
    file = tmp_path / "branch.safetensors"
    saved(built, file, weights)
    again = build_classifier(branch_file=file)
    assert again.dual.num_classes == classes
    assert again.dual.weights_sha256() == built.dual.weights_sha256()
    images = torch.rand(2, 3, 16, 16)
    for got, want in zip(again.dual(images), built.dual(images), strict=True):
        torch.testing.assert_close(got, want)
