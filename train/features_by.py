"""Chooses what computes features for training: PyTorch, or ONNX Runtime where it is faster.

Both compute the same to `TOLERANCE`, which is tried before either is used, so features that the
one computed serve a run with the other.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
import torch

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import BackendUnavailableError, ModelError, SigcamError
from sigcam.core.spec import Preprocessing
from sigcam.core.types import Array
from sigcam.train.augment import Pixels
from sigcam.train.views import FeatureRunner, HeadName, head_of

FeaturesBy = Literal["auto", "torch", "onnxruntime"]

TOLERANCE = 1e-5
"""Largest difference of the two, as a share of the largest feature."""

WORTHWHILE = 20.0
"""Seconds of PyTorch's work below which no graph is exported: that takes about as long."""

_TRIED = 16
"""Views that both are tried on."""
_ROUNDS = 3


class Runner(Protocol):
    """Computes the neck's output of prepared images."""

    @property
    def device(self) -> torch.device:
        """Returns where the output is."""

    def __call__(self, pixels: Pixels) -> torch.Tensor:
        """Returns float32 [B, ...] for raw pixels [B, H, W, n]."""


class SessionRunner:
    """Runs prepared images in ONNX Runtime; see `FeatureRunner` for PyTorch's way.

    Args:
        session: raw pixels to the neck's output, a `FeatureSession`.
    """

    device = torch.device("cpu")

    def __init__(self, session: Callable[[Array], Array]) -> None:
        self._session = session

    def __call__(self, pixels: Pixels) -> torch.Tensor:
        """Computes the neck's output, as `FeatureRunner` does.

        Raises:
            ModelError: a value isn't finite.
            BackendError: ONNX Runtime fails.
        """
        made = self._session(pixels)
        if not np.isfinite(made).all():
            raise ModelError(
                "the network's features are not finite (NaN or infinite); look at its weights "
                "and at mean and std of its input"
            )
        return torch.from_numpy(made)


def runner_for(
    dual: DualBranch,
    preprocessing: Preprocessing,
    device: torch.device,
    head: HeadName,
    by: FeaturesBy,
    views: int,
    say: Callable[[str], None],
) -> Runner:
    """Returns what computes the features.

    Args:
        dual: its backbone must be on `device`.
        preprocessing: of the network's input.
        device: what the head is trained on.
        head: whose neck it is.
        by: "torch"; "onnxruntime"; or "auto", the faster one, where there is enough to compute.
        views: how many there are to compute.
        say: is told which one it is.

    Raises:
        BackendUnavailableError: ONNX Runtime was asked for by name, and can't do it: it isn't
            installed, the device isn't the CPU, or the graph can't be exported.
        ModelError: it was asked for by name, and its features differ; or they aren't finite.
    """
    own = FeatureRunner(dual, preprocessing, device, head)
    if by == "torch" or (by == "auto" and device.type != "cpu"):
        say("features by PyTorch" if device.type == "cpu" else f"features by PyTorch, on {device}")
        return own
    try:
        _require(device)
        pixels = _pixels(preprocessing)
        if by == "auto" and (seconds := views * _seconds(own, pixels)) < WORTHWHILE:
            say(f"features by PyTorch: {views} views take {seconds:.1f} s, too few for a graph")
            return own
        other = SessionRunner(_session(dual, head, preprocessing))
        _check_equal(own(pixels), other(pixels))
    except SigcamError as exc:
        if by == "onnxruntime":
            raise
        say(f"features by PyTorch, not by ONNX Runtime: {exc}")
        return own
    if by == "onnxruntime":
        say("features by ONNX Runtime")
        return other
    ratio = _ratio(own, other, pixels)
    if ratio <= 1:
        say(f"features by PyTorch, which takes {ratio:.2f} of ONNX Runtime's time")
        return own
    say(f"features by ONNX Runtime, {ratio:.1f} times as fast as PyTorch here")
    return other


def _require(device: torch.device) -> None:
    if device.type != "cpu":
        raise BackendUnavailableError(
            f"features by ONNX Runtime are computed on the CPU, the device is {device}; take "
            "device='cpu' (--device cpu), or features by 'torch'"
        )
    missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(n)]
    if missing:
        raise BackendUnavailableError(
            f"features by ONNX Runtime need {', '.join(missing)}; pip install 'sigcam[export]', "
            "or take features by 'torch'"
        )


def _session(
    dual: DualBranch, head: HeadName, preprocessing: Preprocessing
) -> Callable[[Array], Array]:
    from sigcam.export.features import FeatureSession

    return FeatureSession(dual, head_of(dual, head), preprocessing)


def _pixels(preprocessing: Preprocessing) -> Pixels:
    """Returns smooth random images, always the same."""
    from sigcam.export.parity.inputs import further_images

    return further_images(preprocessing, _TRIED)


def _check_equal(own: torch.Tensor, other: torch.Tensor) -> None:
    largest = max(float(own.abs().max()), 1e-30)
    error = float((own - other).abs().max()) / largest if own.shape == other.shape else np.inf
    if not error <= TOLERANCE:
        raise ModelError(
            f"features by ONNX Runtime must be PyTorch's to within {TOLERANCE:g} of the largest, "
            f"they differ by {error:.2g}; take features by 'torch'"
        )


def _seconds(runner: Runner, pixels: Pixels) -> float:
    """Returns the seconds that a view takes, the second time."""
    runner(pixels)
    start = time.perf_counter()
    runner(pixels)
    return (time.perf_counter() - start) / len(pixels)


def _ratio(own: Runner, other: Runner, pixels: Pixels) -> float:
    """Returns how many times as long the one takes as the other, the median of several rounds."""
    ratios = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        own(pixels)
        middle = time.perf_counter()
        other(pixels)
        ratios.append((middle - start) / (time.perf_counter() - middle))
    return float(np.median(ratios))
