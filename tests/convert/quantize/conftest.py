"""A small trained-looking network, its artifacts of several methods, and images for it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.spec import ClassSelection, Preprocessing
from sigcam.export import ExportOptions, export_artifact

SIZE = 32


class Net(nn.Module):
    """Plain, depthwise and residual convolutions, and a head that is linear or not."""

    def __init__(self, mlp=False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6())
        self.block = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6(), nn.Conv2d(16, 16, 1)
        )
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Sequential(nn.Conv2d(16, 24, 3, 1, 1), nn.ReLU())
        body = [nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 5)] if mlp else [nn.Linear(24, 5)]
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *body)

    def forward(self, x):
        x = self.stem(x)
        x = self.pool(x + self.block(x))
        return self.head(self.last(x))


def write_images(folder, count, seed=0):
    """Blobs of colour on noise: smooth enough for CAMs, different enough for classes."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (40, 36), interpolation=cv2.INTER_CUBIC)
        assert cv2.imwrite(str(folder / f"{index:03}.png"), image)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "all", 40)


def export(path, *, mlp=False, selection="input", target_layers=(), **options):
    torch.manual_seed(11)
    net = Net(mlp)
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight *= 2.5  # so that logits differ between images
    dual = DualBranch(
        net, None, input_size=(SIZE, SIZE), target_layers=target_layers, architecture="toy"
    )
    torch.manual_seed(12)
    with torch.no_grad():
        for parameter in dual.sigmoid_head.parameters():
            parameter.copy_(torch.randn_like(parameter))
    # Sums without cancellation, which a rounding error would stand out in.
    options.setdefault("purpose", None if "nwc" in options else "localise")
    chosen = {"topk": ClassSelection("topk", 2)}.get(selection) or ClassSelection(selection)
    export_artifact(
        dual,
        path,
        ExportOptions(
            classes=chosen, preprocessing=Preprocessing(SIZE, SIZE, rule="stretch"), **options
        ),
    )
    return path


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory):
    """A function from options of `export` to the artifact's path; each is made once."""
    folder, made = tmp_path_factory.mktemp("artifacts"), {}

    def get(**options):
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = export(folder / f"{len(made)}.onnx", **options)
        return made[key]

    return get
