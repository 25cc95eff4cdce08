"""Trains a toy under torchrun; every rank writes head and metrics as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.spec import Preprocessing
from sigcam.train.augment import Augmentation
from sigcam.train.loop import Reading, train_branch
from sigcam.train.settings import TrainSettings
from sigcam.train.sources import open_data


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 4),
    )  # fmt: skip


def main(data: str, out: str, cached: str) -> None:
    torch.set_num_threads(1)
    dual = DualBranch(model(), input_size=16)
    result = train_branch(
        dual,
        open_data(data),
        TrainSettings(
            learning_rate=0.05, epochs=3, batch_size=9, val_fraction=0.1, device="cpu",
            cached=cached == "cached",
        ),
        preprocessing=Preprocessing(16, 16, "crop", 18),
        augmentation=Augmentation(views=2),
        reading=Reading(cache_dir=Path(out) / "cache", workers=1),
        run_dir=Path(out) / "run",
        progress=False,
    )  # fmt: skip
    told = {
        "head": {k: v.tolist() for k, v in dual.sigmoid_head.named_tensors().items()},
        "loss": [m.loss for m in result.history],
        "top1": [m.top1 for m in result.history],
        "val_loss": [m.val_loss for m in result.history],
        "images": result.images,
        "failed": sorted(result.failed),
    }
    assert not torch.distributed.is_initialized(), "the process group is left at the end"
    (Path(out) / f"result-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
