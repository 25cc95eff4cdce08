"""The parity certificate: the graph against the definitions in float64.

The reference isn't the exported module run again, but `DualBranch` in float64 and the
formulas of the design. The class choice is checked first; then everything is compared
for the classes that the graph chose.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor
from torch.nn import functional

from sigcam.export.graph import GraphOptions
from sigcam.export.methods import method_class
from sigcam.runtime.errors import ExportError, ParityError
from sigcam.runtime.spec import Geometry, OutputError, Parity
from sigcam.train.dual_branch import DualBranch, DualOutput

BATCHES = ([0], [2, 3, 4], [4, 1, 0, 2, 1, 3, 0, 2])
"""Which of the sample pictures make the batches of 1, 3 and 8."""

_INPUTS = "2 smooth random pictures, noise, black, white (seed 0)"
_FLOOR = 1e-6
"""Outputs that are smaller than this everywhere are compared absolutely."""

Array = npt.NDArray[Any]


def certify(
    dual: DualBranch, data: bytes, options: GraphOptions, geometry: Geometry, tolerance: float
) -> Parity:
    """Runs the ONNX model `data` and compares every output with the reference.

    Raises:
        ParityError: an output is outside `tolerance` or isn't finite.
        ExportError: ONNX Runtime refuses the graph.
    """
    session = _open(data)
    twin = copy.deepcopy(dual).double().eval()
    pictures = sample_pictures(geometry)
    with torch.no_grad():
        # Once per picture, not once per batch: float64 convolutions are slow.
        known = twin(torch.from_numpy(_normalised(pictures, geometry)))
    worst = {name: OutputError(0.0, 0.0) for name in options.output_names}
    for part in BATCHES:
        feeds = {"image": _feed(pictures[part], geometry)}
        if options.classes.mode == "input":
            feeds["class_ids"] = _test_ids(len(feeds["image"]), dual.num_classes)
        got = _run(session, feeds, options.output_names)
        output = DualOutput(*(value[part] for value in known))
        want = reference(twin, output, got["class_ids_out"], options)
        _check_choice(got, feeds, want["logits"], options, tolerance)
        for name, error in worst.items():
            new = compare(got[name], want[name])
            worst[name] = OutputError(
                _nan_max(error.max_abs, new.max_abs), _nan_max(error.max_rel, new.max_rel)
            )
    result = Parity(
        reference=f"torch {torch.__version__} float64",
        engine=f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider",
        tolerance=tolerance,
        batch_sizes=tuple(len(part) for part in BATCHES),
        inputs=_INPUTS,
        outputs=worst,
    )
    if not all(error.max_rel <= tolerance for error in worst.values()):
        raise ParityError(
            f"the graph differs from PyTorch by more than {tolerance:g}; nothing was written\n"
            + table(result)
        )
    return result


def certify_logits(dual: DualBranch, data: bytes, geometry: Geometry, tolerance: float) -> None:
    """Compares the logits of a bare classifier with PyTorch in float64.

    Raises:
        ParityError: they are outside `tolerance` or not finite.
        ExportError: ONNX Runtime refuses the graph.
    """
    pictures = sample_pictures(geometry)
    got = _run(_open(data), {"image": _feed(pictures, geometry)}, ["logits"])["logits"]
    twin = copy.deepcopy(dual).double().eval()
    with torch.no_grad():
        features = twin.features(torch.from_numpy(_normalised(pictures, geometry)))
        want = twin.softmax_head(features).numpy()
    error = compare(got, want)
    if not error.max_rel <= tolerance:
        raise ParityError(
            f"the classifier's logits differ from PyTorch's by {error.max_rel:.3g} of their "
            f"largest, more than {tolerance:g}; nothing was written"
        )


def table(parity: Parity) -> str:
    """The errors as lines of text, one output a line."""
    width = max(map(len, parity.outputs))
    lines = [f"{'output':{width}}  largest relative  largest absolute"]
    for name, error in parity.outputs.items():
        mark = "" if error.max_rel <= parity.tolerance else "  <- outside tolerance"
        lines.append(f"{name:{width}}  {error.max_rel:16.3g}  {error.max_abs:16.3g}{mark}")
    return "\n".join(lines)


def compare(got: Array, want: Array) -> OutputError:
    """The largest errors of one output; NaN where either side has NaN or infinity."""
    if got.shape != want.shape:
        raise ParityError(f"an output has shape {list(got.shape)}, expected {list(want.shape)}")
    if not (np.isfinite(got).all() and np.isfinite(want).all()):
        return OutputError(math.nan, math.nan)
    difference = float(np.abs(got.astype(np.float64) - want).max(initial=0))
    return OutputError(difference, difference / max(float(np.abs(want).max(initial=0)), _FLOOR))


def sample_pictures(geometry: Geometry) -> npt.NDArray[np.uint8]:
    """Five pictures uint8 [5, H, W, 3], always the same."""
    random = np.random.default_rng(0)
    size = (geometry.height, geometry.width)
    coarse = torch.from_numpy(random.random((2, 3, 5, 5)))
    smooth = functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
    pictures = np.zeros((5, *size, 3), np.uint8)
    pictures[:2] = np.clip(smooth.permute(0, 2, 3, 1).numpy() * 255, 0, 255)
    pictures[2] = random.integers(0, 256, (*size, 3), np.uint8)
    pictures[4] = 255
    return pictures


def reference(
    dual: DualBranch, output: DualOutput, class_ids: Array, options: GraphOptions
) -> dict[str, Array]:
    """Every output by its definition, for the classes that the graph chose.

    Args:
        dual: in float64.
        output: of `dual`, float64.
        class_ids: int64 [B, K], the graph's choice.
        options: of the graph.

    Raises:
        ParityError: the graph chose classes that don't exist.
    """
    F, ids = output.features, torch.from_numpy(class_ids)
    C = output.logits.shape[1]
    if ids.ndim != 2 or len(ids) != len(F) or not bool(((ids >= 0) & (ids < C)).all()):
        raise ParityError(f"the graph chose classes that don't exist: {class_ids.tolist()}")
    weights = method_class(options.method).reference_weights(dual, options.branch, F, ids)
    used = weights.clamp(min=0) if options.nwc else weights
    values: dict[str, Tensor] = {
        "logits": output.logits,
        "class_ids_out": ids,
        "evidence_logits": output.sigmoid_logits.gather(1, ids),
        "sigmoid_logits": output.sigmoid_logits,
        "features": F,
        "cam_weights": weights,
        "grids": torch.einsum("bkn,bnhw->bkhw", used, F).clamp(min=0),
    }
    return {name: values[name].numpy() for name in options.output_names}


def _open(data: bytes) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    except Exception as exc:  # ONNX Runtime's own exceptions share no base
        raise ExportError(f"ONNX Runtime refuses the exported graph: {exc}") from exc


def _run(
    session: onnxruntime.InferenceSession, feeds: dict[str, Array], names: list[str]
) -> dict[str, Array]:
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as exc:  # ONNX Runtime's own exceptions share no base
        batch = len(feeds["image"])
        raise ExportError(f"ONNX Runtime fails on a batch of {batch}: {exc}") from exc


def _normalised(pictures: Array, geometry: Geometry) -> Array:
    mean, std = np.array(geometry.mean), np.array(geometry.std)
    scaled = (pictures.astype(np.float64) / 255 - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _feed(pictures: Array, geometry: Geometry) -> Array:
    if geometry.layout == "uint8_nhwc":
        return np.ascontiguousarray(pictures)
    return _normalised(pictures, geometry).astype(np.float32)


def _test_ids(batch: int, num_classes: int) -> Array:
    """Ranks and ids mixed; as many columns as there is room for."""
    ids = [-1, 0, num_classes - 1, -min(2, num_classes)]
    return np.tile(np.array(ids, np.int64), (batch, 1))


def _check_choice(
    got: Mapping[str, Array],
    feeds: Mapping[str, Array],
    logits: Array,
    options: GraphOptions,
    tolerance: float,
) -> None:
    """Two classes may change places where their logits agree within rounding."""
    ids = got["class_ids_out"]
    asked = feeds.get("class_ids")
    if asked is None:
        count = options.classes.k if options.classes.mode == "topk" else 1
        asked = np.tile(-1 - np.arange(count), (len(ids), 1))
    if ids.shape != asked.shape:
        raise ParityError(f"class_ids_out must be {list(asked.shape)}, got {list(ids.shape)}")
    ranked = -np.sort(-logits, axis=1)
    ranks = np.clip(-asked - 1, 0, logits.shape[1] - 1)
    wanted = np.take_along_axis(ranked, ranks, 1)
    chosen = np.take_along_axis(logits, ids, 1)
    # Both logits may be off by the tolerance.
    near = np.abs(wanted - chosen) <= 2 * tolerance * np.abs(logits).max()
    right = np.where(asked < 0, near, ids == asked)
    if not right.all():
        raise ParityError(
            f"the graph chose the classes {ids.tolist()} for the request {asked.tolist()}, "
            f"where PyTorch ranks others first; nothing was written"
        )


def _nan_max(a: float, b: float) -> float:
    return float(np.maximum(a, b))  # max() would lose a NaN
