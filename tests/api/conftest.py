"""A toy classifier, images of two classes, and what the commands make of them."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from sigcam.cli import main
from tests.support.sessions import make_artifact  # noqa: F401 (a fixture)

NET = """
import torch
from torch import nn

def net(num_classes=2):
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )
"""
FIT = ["--size", "32", "--views", "2", "--batch-size", "4", "--epochs", "2"]


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def write_images(folder, rng):
    for number, name in enumerate(("green", "red")):
        (folder / name).mkdir(parents=True)
        for index in range(4):
            image = rng.integers(0, 60, (40 + index, 50, 3), dtype=np.uint8)
            image[8:30, 10:36, 1 + number] = 230  # BGR: green, then red
            assert cv2.imwrite(str(folder / name / f"{index}.png"), image)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A folder with the toy model's architecture and images."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "net.py").write_text(NET)
    write_images(folder / "data", np.random.default_rng(0))
    return SimpleNamespace(
        folder=folder,
        data=folder / "data",
        arch=f"{folder / 'net.py'}:net",
        cache=folder / "cache",
    )


@pytest.fixture(scope="session")
def work(toy):
    """The same folder after the toy model was trained and exported by the commands."""
    made = SimpleNamespace(
        **vars(toy),
        branch=toy.folder / "branch.safetensors",
        top1=toy.folder / "top1.onnx",
        named=toy.folder / "named.onnx",
    )
    model = ["--arch", made.arch, "--num-classes", "2"]
    common = ["--data", made.data, "--cache-dir", made.cache, *FIT]
    made.trained = run("train", *model, *common, "--out", made.branch)
    # Clamped weights have a map on any image, also those of a branch that was hardly trained.
    options = ["--purpose", "localise", "--out", made.top1]
    made.exported = run("export", "--sigmoid-branch", made.branch, *options)
    run("export", "--sigmoid-branch", made.branch, "--classes", "input", "--out", made.named)
    return made


@pytest.fixture
def cli():
    return run


@pytest.fixture(scope="session")
def tiny_model(make_artifact):  # noqa: F811 (the fixture)
    """An artifact that is explained in milliseconds."""
    return make_artifact()


@pytest.fixture
def photographs_in():
    """photographs_in(folder, names) -> the folder, with small images of these names."""

    def write(folder, *names):
        for index, name in enumerate(names):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image = np.random.default_rng(index).integers(0, 256, (60, 80, 3), dtype=np.uint8)
            path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
        return folder

    return write
