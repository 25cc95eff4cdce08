"""PyTorch as a backend, for tests of what the runtime does with a network."""

from __future__ import annotations

import numpy as np
import torch

from sigcam.core.model_file import ModelFile
from sigcam.runtime.backends.base import Backend, TensorInfo
from sigcam.runtime.head_graph import HeadGraph


class TorchBackend(Backend):
    """A function from feeds to outputs as a backend."""

    name = "torch"

    def __init__(self, inputs, outputs, function):
        self.inputs = tuple(TensorInfo(n, np.dtype(d), s) for n, (d, s) in inputs.items())
        self.outputs = tuple(TensorInfo(n, np.dtype(d), s) for n, (d, s) in outputs.items())
        self.function = function

    @classmethod
    def _open(cls, model, options):
        raise NotImplementedError

    def _infer(self, feeds, wanted):
        with torch.inference_mode():
            values = self.function(**{n: torch.from_numpy(a.copy()) for n, a in feeds.items()})
        return {name: values[name].numpy() for name in wanted}


class _NoFile(ModelFile):
    """A head graph's file, where a double takes its place."""

    def __init__(self):
        super().__init__(b"")

    def hold(self):
        pass

    def in_memory(self):
        return self


def head_graph_of(make):
    """A head graph whose backend `make()` returns, of the features."""
    return HeadGraph("features", _NoFile(), lambda _: make())
