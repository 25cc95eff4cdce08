"""The kernels beside other libraries on the GPU: their arrays, streams and graphs."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.gpu.report import CheckFailed, CheckSkipped
from sigcam.core.types import Array
from sigcam.kernels import driver
from sigcam.kernels.arguments import whole
from sigcam.kernels.clamp_combine import ClampCombine
from sigcam.kernels.reference import clamp_combine, normalised_heatmaps
from sigcam.kernels.shapes import Heatmaps, Inputs

SIZE = (224, 224)
STEPS = 200
ERROR = 1e-4
HALF_ERROR = 2e-2
"""Of heatmaps from float16 features: their CAMs are off by as much as float16 rounds."""


def inputs() -> tuple[Array, Array, Array, Array]:
    """Features and weights, and the heatmaps and flags that NumPy makes of them."""
    random = np.random.default_rng(0)
    features = random.normal(size=(2, 2048, 14, 14)).clip(0).astype(np.float32)
    weights = random.normal(size=(2, 5, 2048)).astype(np.float32)
    axes = whole(SIZE[0], 14), whole(SIZE[1], 14)
    return features, weights, *normalised_heatmaps(clamp_combine(features, weights), *axes)


def judged(found: dict[str, tuple[Array, Array]], want: Array, good: Array) -> dict[str, Any]:
    """The largest error of each; raises where one is too large or a flag is wrong."""
    errors, wrong = {}, []
    for name, (heatmaps, valid) in found.items():
        errors[name] = float(np.abs(heatmaps - want).max())
        limit = HALF_ERROR if "half" in name else ERROR
        if not errors[name] <= limit or not np.array_equal(valid.astype(bool), good):
            wrong.append(f"{name} is off by {errors[name]:.2g}, or its flags are wrong")
    if wrong:
        raise CheckFailed("; ".join(wrong), {"errors": errors})
    return {"errors": errors}


def check_torch() -> dict[str, Any]:
    """Tensors made on one stream, heatmaps on another, taken on a third; torch's own capture."""
    try:
        import torch
    except ImportError as exc:
        raise CheckSkipped(f"torch isn't installed ({exc})") from exc
    if not torch.cuda.is_available():
        raise CheckFailed("torch sees no GPU")
    features, weights, want, good = inputs()
    given = [torch.from_numpy(one).cuda() for one in (features, weights)]
    kernel = ClampCombine()

    def host(*made: Any) -> tuple[Array, Array]:
        torch.cuda.synchronize()
        heatmaps, valid = (torch.from_dlpack(one).cpu().numpy() for one in made)
        return heatmaps, valid

    found = {"default stream": host(*kernel(*given, size=SIZE))}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    for _ in range(STEPS):
        with torch.cuda.stream(side):
            made = kernel(*(one * 1.0 for one in given), size=SIZE, stream=side)
        torch.cuda.current_stream().wait_stream(side)
    found["side stream"] = host(*made)
    found["half"] = host(*kernel(*(one.half() for one in given), size=SIZE))
    found["torch's graph"] = _in_torchs_graph(torch, kernel, given)
    return judged(found, want, good)


def _in_torchs_graph(torch: Any, kernel: ClampCombine, given: list[Any]) -> tuple[Array, Array]:
    plan = kernel.plan(Inputs(2, 2048, 14, 14, 5), Heatmaps(whole(SIZE[0], 14), whole(SIZE[1], 14)))
    workspace = torch.zeros(plan.workspace.size, dtype=torch.uint8, device="cuda")
    heatmaps = torch.empty(2, 5, *SIZE, device="cuda")
    valid = torch.empty(2, 5, dtype=torch.uint8, device="cuda")
    names = ("features", "weights", "heatmaps", "valid", "workspace")
    tensors = (*given, heatmaps, valid, workspace)
    addresses = {name: one.data_ptr() for name, one in zip(names, tensors, strict=True)}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel.launch(plan, **addresses, stream=torch.cuda.current_stream().cuda_stream)
    for _ in range(50):
        graph.replay()
    torch.cuda.synchronize()
    return heatmaps.cpu().numpy(), valid.cpu().numpy()


def check_cupy() -> dict[str, Any]:
    """CuPy's arrays in, on a stream of CuPy's, and ours taken by both protocols."""
    try:
        import cupy
    except ImportError as exc:
        raise CheckSkipped(f"CuPy isn't installed ({exc})") from exc
    features, weights, want, good = inputs()
    given = [cupy.asarray(one) for one in (features, weights)]
    with driver.retain_primary_context(0):
        kernel = ClampCombine()
        cupy.cuda.Device().synchronize()
        with cupy.cuda.Stream(non_blocking=True) as stream:
            heatmaps, valid = kernel(*given, size=SIZE, stream=stream)
            taken = cupy.from_dlpack(heatmaps), cupy.asarray(valid)
            stream.synchronize()
        return judged({"cupy": (taken[0].get(), taken[1].get())}, want, good)
