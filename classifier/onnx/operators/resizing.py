"""Holds the resizing of grids: nearest, linear and cubic."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sigcam.classifier.onnx.operators.table import Call, Value, ints, operator

_ADVICE = "export the model with modes that torch has"
_KINDS = {"linear": {1: "linear", 2: "bilinear", 3: "trilinear"}, "cubic": {2: "bicubic"}}


@operator("Upsample", static=(1,))
def upsample(call: Call, x: Tensor, scales: Any = None) -> Tensor:
    """Resizes a grid as opsets 7 to 10 do it: positions are divided by the scale."""
    named = call.get("scales") if scales is None else scales
    factors = [float(f) for f in np.asarray(named, dtype=float).reshape(-1)[2:]]
    target = [int(n * f) for n, f in zip(x.shape[2:], factors, strict=True)]
    mode = call.get("mode", "nearest")
    if mode not in ("nearest", "linear", "bilinear"):
        raise call.refused("the mode nearest or linear", mode, _ADVICE)
    for axis, (size, factor) in enumerate(zip(target, factors, strict=True), 2):
        places = _places(call, "asymmetric", size, int(x.shape[axis]), factor)
        if mode == "nearest":  # whole steps upwards when shrinking, downwards when enlarging
            x = _taken(x, axis, np.ceil(places) if factor < 1 else np.floor(places))
        else:
            x = _between(x, axis, places)
    return x


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
    if call.get("exclude_outside", 0):
        raise call.refused("weights of what lies outside", "them left out", _ADVICE)
    kind = _KINDS.get(mode, {}).get(x.ndim - 2)
    if kind is None:
        raise call.refused("the mode nearest, linear or cubic", mode, _ADVICE)
    same = [t == n * f for t, n, f in zip(target, map(int, x.shape[2:]), factors, strict=True)]
    # torch derives the scale from the sizes.
    if where == "align_corners" or (all(same) and where in ("half_pixel", "pytorch_half_pixel")):
        if mode == "cubic" and abs(call.get("cubic_coeff_a", -0.75) + 0.75) > 1e-6:
            raise call.refused("a cubic coefficient of -0.75", call.get("cubic_coeff_a"), _ADVICE)
        return functional.interpolate(x, target, mode=kind, align_corners=where == "align_corners")
    if mode == "cubic":
        raise call.refused("half pixels or aligned corners, and whole sizes", where, _ADVICE)
    for axis, (size, factor) in enumerate(zip(target, factors, strict=True), 2):
        x = _between(x, axis, _places(call, where, size, int(x.shape[axis]), factor))
    return x


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


def _places(call: Call, where: str, size: int, length: int, factor: float) -> Any:
    """Returns where each new position lies among the old ones along an axis.

    Args:
        call: the node, for messages.
        where: the rule, as ONNX names it.
        size: the new extent.
        length: the old one.
        factor: by how much the axis grows.
    """
    places = np.arange(size, dtype=float)
    if where in ("half_pixel", "pytorch_half_pixel"):
        places = (places + 0.5) / factor - 0.5
        return places * (size > 1 or where == "half_pixel")
    if where == "asymmetric":
        return places / factor
    if where == "align_corners":
        return places * (length - 1) / max(1, size - 1)
    raise call.refused("half pixels, aligned corners or asymmetric", where, _ADVICE)


def _nearest(call: Call, x: Tensor, target: list[int], factors: list[float], where: str) -> Tensor:
    """Takes for each new position the old one that is nearest by the node's own rule."""
    rounding = call.get("nearest_mode", "round_prefer_floor")
    for axis, (size, factor) in enumerate(zip(target, factors, strict=True), 2):
        places = _places(call, where, size, int(x.shape[axis]), factor)
        rounded = {
            "round_prefer_floor": np.ceil(places - 0.5), "floor": np.floor(places),
            "round_prefer_ceil": np.floor(places + 0.5), "ceil": np.ceil(places),
        }[rounding]  # fmt: skip
        x = _taken(x, axis, rounded)
    return x


def _taken(x: Tensor, axis: int, places: Any) -> Tensor:
    """Takes the elements at whole places along an axis; outside of it those at its ends."""
    inside = np.clip(places, 0, int(x.shape[axis]) - 1).astype(np.int64)
    return x.index_select(axis, torch.from_numpy(inside).to(x.device))


def _between(x: Tensor, axis: int, places: Any) -> Tensor:
    """Takes weighted means of the two elements beside each place along an axis."""
    places = np.clip(places, 0, int(x.shape[axis]) - 1)
    low = np.floor(places)
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    share = torch.from_numpy((places - low).astype(np.float32)).to(x.device).reshape(shape)
    before, after = _taken(x, axis, low), _taken(x, axis, low + 1)
    return before + share * (after - before)
