"""Trains a toy under torchrun, once in each way; every rank writes head and metrics as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.spec import Preprocessing
from sigcam.data import open_dataset
from sigcam.train.augment import Augmentation
from sigcam.train.loop import fit_sigmoid_head
from sigcam.train.settings import Reading, TrainSettings
from sigcam.train.views import TrainingViews


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 4),
    )  # fmt: skip


def main(data: str, out: str, first: str, second: str) -> None:
    """Trains in two ways, "cached" and "live" in any order, one after the other.

    Under torchrun the first one joins the other processes by itself and leaves them; the
    second one finds them joined. (It couldn't join by itself: torchrun's store still has the
    addresses of the first group.)
    """
    torch.set_num_threads(1)
    train(data, Path(out) / first, is_cached=first == "cached")
    assert not dist.is_initialized(), "the process group is left at the end"
    is_one_of_several = "RANK" in os.environ
    if is_one_of_several:
        store, rank, size = next(dist.rendezvous("env://"))
        store = dist.PrefixStore("second", store)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    train(data, Path(out) / second, is_cached=second == "cached")
    assert dist.is_initialized() == is_one_of_several, "a group of the caller's is kept"
    if is_one_of_several:
        dist.destroy_process_group()


def train(data: str, out: Path, *, is_cached: bool) -> None:
    dual = DualBranch(model(), input_size=16)
    result = fit_sigmoid_head(
        dual,
        TrainingViews(
            open_dataset(data), Preprocessing(16, 16, "crop", 18), Augmentation(views=2)
        ),
        TrainSettings(
            learning_rate=0.05, epochs=3, batch_size=9, val_fraction=0.1, device="cpu",
            cached=is_cached,
        ),
        reading=Reading(cache_dir=out / "cache", workers=1),
        run_dir=out / "run",
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
    (out / f"result-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
