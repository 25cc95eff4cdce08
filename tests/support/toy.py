"""Toy images and a toy classifier: four classes that differ in colour."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.spec import Preprocessing
from sigcam.data import Dataset, open_dataset
from sigcam.train.augment import Augmentation
from sigcam.train.views import TrainingViews

SIZE = 16
COLOURS = ((220, 30, 30), (30, 220, 30), (30, 30, 220), (200, 200, 40))


class Toy(nn.Module):
    """Two convolutions, global average pooling, dropout and a linear layer (or two)."""

    def __init__(self, num_classes: int = 4, dropout: float = 0.0, deep: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(dropout)
        self.hidden = nn.Sequential(nn.Linear(12, 12), nn.ReLU()) if deep else nn.Identity()
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.fc(self.hidden(self.drop(self.pool(x).flatten(1))))


def toy_model(num_classes: int = 4, dropout: float = 0.0, deep: bool = False) -> Toy:
    torch.manual_seed(3)
    return Toy(num_classes, dropout, deep)


@lru_cache
def _split(num_classes: int, dropout: float, deep: bool) -> DualBranch:
    return DualBranch(toy_model(num_classes, dropout, deep), input_size=SIZE)


def toy_dual(num_classes: int = 4, dropout: float = 0.0, deep: bool = False) -> DualBranch:
    return copy.deepcopy(_split(num_classes, dropout, deep))


def write_image(file: Path, class_id: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (24, 20, 3)) + np.array(COLOURS[class_id]) * 3 // 4
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), np.clip(image, 0, 255).astype(np.uint8)[:, :, ::-1])


def write_folder(root: Path) -> None:
    """10 images of each of 4 classes, in class folders."""
    for class_id in range(4):
        for i in range(10):
            write_image(root / f"class{class_id}" / f"{i}.png", class_id, 100 * class_id + i)


@pytest.fixture
def toy() -> DualBranch:
    return toy_dual()


@pytest.fixture
def make_dual():
    return toy_dual


@pytest.fixture
def make_model():
    return toy_model


@pytest.fixture
def preprocessing() -> Preprocessing:
    return Preprocessing(SIZE, SIZE, "crop", 18)


@pytest.fixture
def augmentation() -> Augmentation:
    return Augmentation(views=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """10 images of each of 4 classes, in class folders."""
    write_folder(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def data(folder: Path) -> Dataset:
    return open_dataset(folder)


@pytest.fixture
def views(data: Dataset, preprocessing: Preprocessing, augmentation: Augmentation) -> TrainingViews:
    """Three views of each of the 40 images."""
    return TrainingViews(data, preprocessing, augmentation)
