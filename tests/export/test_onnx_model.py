"""What is done to a graph after PyTorch's exporter."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from torch import nn

from sigcam.export.onnx_model import GraphSignature, to_onnx

MATRIX = np.arange(48 * 40, dtype=np.float32).reshape(48, 40)
"""The exporter's own pass merges constants of up to 1,024 numbers."""


class Twice(nn.Module):
    """Two equal matrices, each a transposed view: neither lies in memory row by row."""

    def __init__(self):
        super().__init__()
        for name in ("first", "second"):
            matrix = torch.from_numpy(MATRIX.T.copy()).t()
            self.register_parameter(name, nn.Parameter(matrix, requires_grad=False))

    def forward(self, x, y):
        return x @ self.first + (y @ self.second).relu()


def test_equal_constants_are_stored_once_even_as_views():
    inputs = {name: torch.zeros(2, 48) for name in ("x", "y")}
    dynamic = {name: {0: "batch"} for name in inputs}
    model = to_onnx(Twice(), GraphSignature(inputs, ["out"], dynamic))
    [matrix] = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer]
    np.testing.assert_array_equal(matrix, MATRIX)
