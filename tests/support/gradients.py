"""The backward pass of a module through the decompositions: eagerly, traced, and as ONNX."""

from __future__ import annotations

import warnings

import numpy as np
import onnxruntime as ort
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from sigcam.export.backward.decompositions import DECOMPOSITIONS
from sigcam.export.backward.simplify import simplify
from sigcam.export.onnx_model import GraphSignature, to_onnx


class Decomposed(TorchDispatchMode):
    """Every operator that has a decomposition runs as that; `used` collects them."""

    def __init__(self):
        super().__init__()
        self.used = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in DECOMPOSITIONS:
            with self:
                found = DECOMPOSITIONS[func](*args, **(kwargs or {}))
            if found is not NotImplemented:
                self.used.add(func)
                return found
        return func(*args, **(kwargs or {}))


def gradient(f, x, cotangent):
    """f(x) and the gradient of f(x) . cotangent with respect to x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        y = f(x)
        (found,) = torch.autograd.grad(y, x, cotangent)
    return y.detach(), found


def trace(head, x):
    """The head's output and gradient as one simplified graph (parameters, x, cotangent)."""
    tensors = {**dict(head.named_parameters()), **dict(head.named_buffers())}
    mode = FakeTensorMode(shape_env=ShapeEnv())

    def fake(value, dynamic):
        sizes = [DimDynamic.STATIC] * value.ndim
        sizes[:1] = [DimDynamic.DYNAMIC] if dynamic else sizes[:1]
        context = StatelessSymbolicContext(dynamic_sizes=sizes)
        return mode.from_tensor(value.detach(), symbolic_context=context)

    static = {name: fake(value, False) for name, value in tensors.items()}
    with torch.no_grad():
        classes = head(x).shape[1]
    faked = fake(x, True)
    with mode, sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = make_fx(
            lambda p, x, c: gradient(lambda v: functional_call(head, p, (v,)), x, c),
            tracing_mode="real",
            decomposition_table=DECOMPOSITIONS,
            _allow_non_fake_inputs=True,
        )(static, faked, torch.empty(faked.shape[0], classes, dtype=x.dtype))
    return simplify(graph), tensors


class Embedded(nn.Module):
    """A traced graph with its parameters, as it goes into an exported module."""

    def __init__(self, graph, tensors):
        super().__init__()
        self.traced, self.names = graph, list(tensors)
        for index, value in enumerate(tensors.values()):
            self.register_buffer(f"tensor_{index}", value.detach())

    def forward(self, x, cotangent):
        tensors = {name: getattr(self, f"tensor_{i}") for i, name in enumerate(self.names)}
        return tuple(self.traced(tensors, x, cotangent))


def export(head, x):
    """ONNX of the head's output and gradient, with a dynamic batch."""
    graph, tensors = trace(head, x)
    with torch.no_grad():
        inputs = {"x": x, "cotangent": torch.ones_like(head(x))}
    dynamic = {name: {0: "batch"} for name in inputs}
    return to_onnx(Embedded(graph, tensors), GraphSignature(inputs, ["y", "gradient"], dynamic))


def onnx_errors(model, head, shape, batches=(1, 3)):
    """Relative errors of ONNX Runtime against autograd in float64: output and gradient.

    `head` is left in float64.
    """
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    head.double()
    errors = []
    for batch in batches:
        generator = torch.Generator().manual_seed(batch)
        x = torch.randn(batch, *shape, generator=generator)
        cotangent = torch.randn(batch, head(x.double()).shape[1], generator=generator)
        wanted = gradient(head, x.double(), cotangent.double())
        got = session.run(None, {"x": x.numpy(), "cotangent": cotangent.numpy()})
        for want, found in zip(wanted, got, strict=True):
            errors.append(float(np.abs(found - want.numpy()).max() / want.abs().max()))
    return errors
