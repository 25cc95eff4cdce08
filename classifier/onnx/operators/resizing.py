"""Holds the enlarging of grids, in those modes that torch has too."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sigcam.classifier.onnx.operators.table import Call, Value, ints, operator

_ADVICE = "export the model with modes that torch has"


@operator("Upsample", static=(1,))
def upsample(call: Call, x: Tensor, scales: Any = None) -> Tensor:
    """Enlarges a grid as opsets 7 to 9 do it."""
    factors = call.get("scales") if scales is None else list(np.asarray(scales, dtype=float))
    sizes = [int(n * f) for n, f in zip(x.shape[2:], factors[2:], strict=True)]
    if call.get("mode", "nearest") == "nearest":
        return functional.interpolate(x, sizes, mode="nearest")
    raise call.refused("the mode nearest", call.get("mode"), "convert the file to opset 11")


@operator("Resize", static=(1, 2, 3))
def resize(
    call: Call, x: Tensor, roi: Value = None, scales: Value = None, sizes: Value = None
) -> Any:
    """Gives a grid another size: nearest, linear or cubic."""
    if call.opset < 11:
        return upsample(call, x, roi)
    target, factors = _target(call, x, scales, sizes)
    mode = call.get("mode", "nearest")
    where = call.get("coordinate_transformation_mode", "half_pixel")
    if call.get("antialias", 0):
        raise call.refused("no antialiasing", "some", _ADVICE)
    if mode == "nearest":
        return _nearest(call, x, target, factors, where)
    if where not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise call.refused("half pixels or aligned corners", where, _ADVICE)
    if mode == "cubic" and abs(call.get("cubic_coeff_a", -0.75) + 0.75) > 1e-6:
        raise call.refused("a cubic coefficient of -0.75", call.get("cubic_coeff_a"), _ADVICE)
    if call.get("exclude_outside", 0):
        raise call.refused("weights of what lies outside", "them left out", _ADVICE)
    kinds = {"linear": {1: "linear", 2: "bilinear", 3: "trilinear"}, "cubic": {2: "bicubic"}}
    kind = kinds.get(mode, {}).get(x.ndim - 2)
    if kind is None:
        raise call.refused("the mode nearest, linear or cubic", mode, _ADVICE)
    return functional.interpolate(x, target, mode=kind, align_corners=where == "align_corners")


def _target(call: Call, x: Tensor, scales: Value, sizes: Value) -> tuple[list[int], list[float]]:
    """Returns the grid's new extents, and by how much it grows along each axis."""
    axes = [a % x.ndim for a in call.get("axes", range(x.ndim))]
    own = [int(n) for n in x.shape[2:]]
    if call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.refused("the policy stretch", call.get("keep_aspect_ratio_policy"), _ADVICE)
    if sizes is not None and np.asarray(sizes).size:
        wanted = dict(zip(axes, ints(sizes), strict=True))
        target = [wanted.get(i + 2, n) for i, n in enumerate(own)]
        return target, [t / n for t, n in zip(target, own, strict=True)]
    named = dict(zip(axes, np.asarray(scales, dtype=float).reshape(-1), strict=True))
    factors = [float(named.get(i + 2, 1.0)) for i in range(len(own))]
    return [int(n * f) for n, f in zip(own, factors, strict=True)], factors


def _nearest(call: Call, x: Tensor, target: list[int], factors: list[float], where: str) -> Tensor:
    """Takes for each new position the old one that is nearest by the node's own rule."""
    rounding = call.get("nearest_mode", "round_prefer_floor")
    for axis, (size, factor) in enumerate(zip(target, factors, strict=True)):
        places = np.arange(size, dtype=float)
        length = int(x.shape[axis + 2])
        if where in ("half_pixel", "pytorch_half_pixel"):
            places = (places + 0.5) / factor - 0.5
            places = places * (size > 1 or where == "half_pixel")
        elif where == "asymmetric":
            places = places / factor
        elif where == "align_corners":
            places = places * (length - 1) / max(1, size - 1)
        else:
            raise call.refused("half pixels, aligned corners or asymmetric", where, _ADVICE)
        rounded = {
            "round_prefer_floor": np.ceil(places - 0.5), "floor": np.floor(places),
            "round_prefer_ceil": np.floor(places + 0.5), "ceil": np.ceil(places),
        }[rounding]  # fmt: skip
        x = _taken(x, axis + 2, np.clip(rounded, 0, length - 1).astype(np.int64))
    return x


def _taken(x: Tensor, axis: int, places: Any) -> Tensor:

    return x.index_select(axis, torch.from_numpy(places).to(x.device))
