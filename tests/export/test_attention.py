"""Attention in the backbone: of any rank, with any mask, as PyTorch computes it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attend

from sigcam.core.errors import ExportError
from sigcam.export.onnx_model import GraphSignature, to_onnx

TRIANGLE = torch.ones(6, 6, dtype=torch.bool).tril()
BIAS = torch.linspace(-2, 2, 36).reshape(6, 6)
HIDDEN = TRIANGLE.clone()
HIDDEN[2] = False


SIGNATURE = GraphSignature({"x": torch.zeros(2, 4, 6, 8)}, ["y"], {"x": {0: "batch"}})


class Attends(nn.Module):
    def __init__(self, *attentions):
        super().__init__()
        self.attentions = attentions

    def forward(self, x):
        return tuple(attention(x) for attention in self.attentions)


CASES = {
    "no heads": lambda x: attend(x[:, 0], 2 * x[:, 1], x[:, 2]),
    "heads": lambda x: attend(x, 2 * x, x + 1),
    "windows": lambda x: attend(*(x.reshape(-1, 4, 2, 3, 8) * s for s in (1.0, 2.0, 1.0))),
    "windows in the batch": lambda x: attend(*[x.reshape(-1, 2, 6, 8)] * 3).reshape_as(x),
    "six axes": lambda x: attend(*[x.reshape(-1, 2, 2, 1, 6, 8)] * 3),
    "bool mask": lambda x: attend(x[:, None], x[:, None], x[:, None], TRIANGLE),
    "a hidden row": lambda x: attend(x, x, x, HIDDEN),
    "float mask": lambda x: attend(x, x, x, BIAS),
    "a hidden row of floats": lambda x: attend(x, x, x, BIAS.masked_fill(~HIDDEN, -torch.inf)),
    "a mask of the image": lambda x: attend(x, x, x, x[:, :, :, :1] * BIAS[:1]),
    "a bool mask of the image": lambda x: attend(x, x, x, x[:, :, :, :1] > BIAS[:1]),
    "causal": lambda x: attend(x, x, x, is_causal=True),
    "causal, of fewer": lambda x: attend(x, x[:, :, :4], x[:, :, :4], is_causal=True),
    "scale": lambda x: attend(x, x, x, BIAS, scale=0.3),
    "groups": lambda x: attend(x, x[:, :2] * 2, x[:, :2], enable_gqa=True),
    "groups of windows": lambda x: attend(
        x[:, None], x[:, None, 1:3], x[:, None, :2], is_causal=True, enable_gqa=True
    ),
    "one key for all heads": lambda x: attend(x, x[:, :1], x[:, :1]),
    "values of another size": lambda x: attend(x, x, x[..., :5]),
}


@pytest.fixture(scope="module")
def attended():
    """What one graph with all cases gives for an image, and the image."""
    signature = replace(SIGNATURE, outputs=list(CASES))
    model = to_onnx(Attends(*CASES.values()), signature)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = torch.randn(3, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    return x, dict(zip(CASES, session.run(list(CASES), {"x": x.numpy()}), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_attention_is_pytorch_s(attended, case):
    x, got = attended
    # By the definition: the fused kernels differ where a row is hidden.
    with sdpa_kernel(SDPBackend.MATH):
        want = CASES[case](x)
    np.testing.assert_allclose(got[case], want.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_later_opsets():
    model = to_onnx(Attends(CASES["bool mask"]), SIGNATURE, 20)
    assert {one.domain: one.version for one in model.opset_import}[""] == 20
    assert {node.op_type for node in model.graph.node} >= {"MatMul", "Softmax"}
    onnxruntime.InferenceSession(model.SerializeToString())


@pytest.mark.slow
def test_dropout_that_acts_is_refused():
    with pytest.raises(ExportError, match="a dropout that acts in inference mode"):
        to_onnx(Attends(lambda x: attend(x, x, x, dropout_p=0.5)), SIGNATURE)
