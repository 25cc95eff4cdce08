"""Imported once by `run.py`: all that an export imports when it first runs.

These imports take as long as many a small network. No gradient may be taken here: autograd
doesn't work in a copy of a process in which it has.
"""

import warnings

import timm  # noqa: F401
import torch
import torchvision  # noqa: F401
import transformers
from torch import nn

from benchmarks.coverage import check as coverage_check  # noqa: F401
from sigcam.export.onnx_model import GraphSignature, to_onnx

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
# One thread: a process that has several can't be copied safely.
torch.set_num_threads(1)
to_onnx(
    nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 2)),
    GraphSignature({"x": torch.zeros(2, 3, 4, 4)}, ["y"], {"x": {0: "batch"}}),
)
