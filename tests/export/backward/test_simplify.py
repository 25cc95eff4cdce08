"""What simplifying a traced graph leaves of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from sigcam.export.backward.simplify import prepare
from tests.support.gradients import trace

aten = torch.ops.aten


class Of(nn.Module):
    def __init__(self, f, **modules):
        super().__init__()
        self.f = f
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.f(self, x)


def targets(f, *shape, **modules):
    graph, _ = trace(Of(f, **modules), torch.randn(4, *shape))
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


def test_a_linear_layer_on_tokens_is_no_batched_product():
    # PyTorch expands the weight to the batch where the tokens aren't contiguous.
    found = targets(lambda m, x: m.f1(x.transpose(1, 2)).sum(1), 6, 9, f1=nn.Linear(6, 5))
    assert aten.matmul.default in found
    assert aten.bmm.default not in found
    found = targets(lambda m, x: (x @ x.transpose(1, 2)).sum(1), 6, 9)
    assert aten.bmm.default in found


def test_sizes_are_numbers():
    found = targets(lambda m, x: x.flatten(1).unflatten(1, (3, 12)).relu().flatten(1), 6, 6)
    assert aten.reshape.default in found
    assert not {aten.view.default, aten._unsafe_view.default, aten.sym_size.int} & set(found)


def test_max_pooling_keeps_no_indices():
    found = targets(lambda m, x: F.max_pool2d(x, 2).flatten(1), 3, 6, 6)
    assert aten.max_pool2d.default in found
    assert aten.max_pool2d_with_indices.default not in found


def test_nothing_is_changed_in_place():
    # The cosine clamps a copy of the norm, whose old value the backward pass needs.
    def f(m, x):
        return F.cosine_similarity(x, x.flip(1), 1, eps=9.0).flatten(1)

    head, x = Of(f), torch.randn(4, 3, 5, 5, dtype=torch.float64)
    graph, tensors = trace(head, x)
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    schemas = [n.target._schema for n in nodes if isinstance(n.target, torch._ops.OpOverload)]
    assert not any(schema.is_mutable for schema in schemas)
    cotangent = torch.randn(4, 25, dtype=torch.float64)
    x.requires_grad_()
    y = head(x)
    (wanted,) = torch.autograd.grad(y, x, cotangent)
    found = graph(tensors, x.detach(), cotangent)
    torch.testing.assert_close(found[0], y.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[1], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "nearest-exact", "bicubic"])
def test_preparing_keeps_what_a_head_computes(mode):
    class Head(nn.Module):
        def forward(self, x):
            y = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=1.7, mode=mode)
            return F.adaptive_avg_pool2d(y, 1).flatten(1) * x.view(x.shape[0], -1, 4).mean(1)

    x = torch.randn(4, 5, 6, 4)
    program = torch.export.export(
        Head(), (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
    ).run_decompositions({})
    flat = program.module(check_guards=False)
    prepare(flat.graph)
    flat.recompile()
    found = {node.target for node in flat.graph.nodes}
    assert not {aten.view.default, aten.adaptive_avg_pool2d.default} & found
    assert not [target for target in found if "vec" in str(target)]
    torch.testing.assert_close(flat(x), Head()(x))
