"""Answers of a GPU backend against those of the CPU path."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from benchmarks.gpu.report import CheckFailed
from sigcam.core.types import Array
from sigcam.runtime.explanation import Explanation
from sigcam.runtime.session import Session

SIZES = ((480, 640), (480, 640), (333, 217), (640, 480), (224, 224))
CLASSES = (0, 3, 7)
TURNS = 4
"""Calls of each kind; with TensorRT the second is captured, and the third is the first replay."""


@dataclass(frozen=True)
class Limits:
    """How far a backend may be from the CPU path.

    Attributes:
        probability: largest difference of probability and evidence.
        cam: largest mean difference of a CAM, relative to its largest value. The mean, as
            a gradient jumps where a ReLU's input is within rounding of zero.
        heatmap: largest mean difference of a heatmap, whose range is 0 to 1.
        correlation: least correlation of CAMs.
    """

    probability: float
    cam: float
    heatmap: float
    correlation: float


EXACT = Limits(probability=1e-4, cam=2e-3, heatmap=5e-3, correlation=0.9995)
TF32 = Limits(probability=1e-2, cam=2e-2, heatmap=3e-2, correlation=0.99)
LIMITS: Mapping[str, Limits] = {"ort-cuda": EXACT, "tensorrt": EXACT, "ort-tensorrt": TF32}
"""TensorRT rounds factors to 10 bits by itself; only its own interface turns that off."""


def images(turn: int = 0) -> list[Array]:
    """Smooth random images, uint8 [H, W, 3]: in every turn others, of the same sizes."""
    rng = np.random.default_rng(turn)
    found = []
    for height, width in SIZES:
        coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        found.append(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
    return found


def ask(gpu: Session, cpu: Session) -> tuple[list[Explanation], list[Explanation]]:
    """The same questions to two sessions: one after the other, then from threads at once.

    A batch and an image alone in every turn. The threads ask what the turns asked, so the
    CPU's answers to those serve twice.
    """
    classes = [one for one in CLASSES if one < cpu.spec.num_classes]
    question: dict[str, Any] = {"classes": classes} if cpu.spec.classes.mode == "input" else {}
    got: list[Explanation] = []
    want: list[Explanation] = []
    batches: list[list[Explanation]] = []
    for turn in range(TURNS):
        asked = images(turn)
        for part in (asked, [asked[2]]):
            got += _flat(gpu.explain(part, **question))
            answers = _flat(cpu.explain(part, **question))
            want += answers
            if part is asked:
                batches.append(answers)
    together = threading.Barrier(TURNS, timeout=60)

    def thread(turn: int) -> list[Explanation]:
        asked = images(turn)
        together.wait()
        return _flat(gpu.explain(asked, **question))

    with ThreadPoolExecutor(TURNS) as pool:
        got += _flat(list(pool.map(thread, range(TURNS))))
    return got, want + _flat(batches)


def _flat(answers: Sequence[Sequence[Explanation]]) -> list[Explanation]:
    return [one for several in answers for one in several]


def differences(got: Sequence[Explanation], want: Sequence[Explanation]) -> dict[str, float]:
    """The largest differences of two sessions' answers to the same questions; NaN is largest.

    Raises:
        CheckFailed: the answers aren't of the same kind: their number, classes, shapes, or
            whether there is evidence.
    """
    if len(got) != len(want):
        raise CheckFailed(f"{len(got)} answers came for {len(want)}")
    found = dict.fromkeys(("probability", "cam", "cam_max", "heatmap", "heatmap_max"), 0.0)
    least, flags, valid = 1.0, 0, 0
    for one, other in zip(got, want, strict=True):
        _refuse_another_kind(one, other)
        for name, value in _difference(one, other).items():
            found[name] = float(np.maximum(found[name], value))  # which keeps NaN
        flags += one.valid != other.valid
        if one.valid and other.valid:
            valid += 1
            pair = np.corrcoef(one.cam.reshape(-1), other.cam.reshape(-1))
            least = float(np.minimum(least, pair[0, 1]))
    counts = {"answers": len(want), "valid": valid, "wrong_flags": flags}
    return {**found, "correlation": least, **{name: float(n) for name, n in counts.items()}}


def _refuse_another_kind(one: Explanation, other: Explanation) -> None:
    if one.class_id != other.class_id:
        raise CheckFailed(f"class {one.class_id} came for class {other.class_id}")
    for name, a, b in (("CAM", one.cam, other.cam), ("heatmap", one.heatmap, other.heatmap)):
        if a.shape != b.shape:
            raise CheckFailed(f"a {name} of {list(a.shape)} came for one of {list(b.shape)}")
    if (one.evidence is None) != (other.evidence is None):
        raise CheckFailed("evidence came from one of them only")


def _difference(one: Explanation, other: Explanation) -> dict[str, float]:
    numbers = [abs(one.probability - other.probability)]
    if one.evidence is not None and other.evidence is not None:
        numbers.append(abs(one.evidence - other.evidence))
    scale = max(float(np.abs(other.cam).max()), 1e-12)
    cam = np.abs(one.cam - other.cam) / scale
    between = np.abs(one.heatmap - other.heatmap)
    return {
        "probability": float(np.max(numbers)),
        "cam": float(cam.mean()),
        "cam_max": float(cam.max()),
        "heatmap": float(between.mean()),
        "heatmap_max": float(between.max()),
    }


def judge(name: str, figures: Mapping[str, float], limits: Limits) -> list[str]:
    """What is outside the limits, in words; nothing when all is well. NaN is outside."""
    if not figures["answers"]:
        return [f"{name}: there were no answers to compare"]
    problems = [
        f"{name}: {words} is off by {figures[key]:.3g}"
        for key, words in (("probability",) * 2, ("cam", "CAM"), ("heatmap",) * 2)
        if not figures[key] <= getattr(limits, key)
    ]
    if not figures["correlation"] >= limits.correlation:
        problems.append(f"{name}: CAMs correlate only {figures['correlation']:.5f}")
    if figures["wrong_flags"]:
        count = f"{figures['wrong_flags']:.0f}"
        problems.append(f"{name}: {count} heatmaps are valid on one of them only")
    return problems
