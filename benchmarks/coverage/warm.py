"""Imported once by `coverage.py`: all that an export imports when it first runs.

These imports take as long as many a small network.
"""

import warnings

import timm  # noqa: F401
import torch
import torchvision  # noqa: F401
from torch import nn

from benchmarks.coverage import check as coverage_check  # noqa: F401
from sigcam.export.onnx_model import GraphSignature, to_onnx

warnings.simplefilter("ignore")
# One thread: a process that has several can't be copied safely.
torch.set_num_threads(1)
to_onnx(
    nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 2)),
    GraphSignature({"x": torch.zeros(2, 3, 4, 4)}, ["y"], {"x": {0: "batch"}}),
)
