"""GPU backends against the CPU path, and their latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from gpu_latency import Clock, measure
from gpu_report import CheckFailed, CheckSkipped

from sigcam.runtime.artifact import read_spec
from sigcam.runtime.backends import open_backend
from sigcam.runtime.backends.base import Backend, BackendOptions, MapRequest
from sigcam.runtime.errors import BackendUnavailableError
from sigcam.runtime.geometry import place
from sigcam.runtime.result import Explanation
from sigcam.runtime.session import Session, load
from sigcam.runtime.spec import ClassSelection, Profile

Array = npt.NDArray[Any]

BACKENDS = ("ort-cuda", "ort-tensorrt", "tensorrt")

NETWORKS: Mapping[str, str] = {
    "efficientnet_lite0": "DEFAULT",
    "wsol-resnet50": "random",
    "wsol-vgg16": "random",
    "wsol-inceptionv3": "random",
}
"""Network to its weights. The last three are the paper's backbones."""

PROFILES: tuple[Profile, ...] = ("split", "fused")
SIZES = ((480, 640), (480, 640), (333, 217), (640, 480), (224, 224))
CLASSES = (0, 3, 7)


@dataclass(frozen=True)
class Limits:
    """How far a backend may be from the CPU path.

    Attributes:
        probability: largest difference of probability and evidence.
        grid: largest mean difference of a grid, relative to its largest value. The mean, as
            a gradient jumps where a ReLU's input is within rounding of zero.
        correlation: least correlation of grids.
    """

    probability: float
    grid: float
    correlation: float


EXACT = Limits(probability=1e-4, grid=2e-3, correlation=0.9995)
TF32 = Limits(probability=1e-2, grid=2e-2, correlation=0.99)
LIMITS: Mapping[str, Limits] = {"ort-cuda": EXACT, "tensorrt": EXACT, "ort-tensorrt": TF32}
"""TensorRT rounds factors to 10 bits by itself; only its own interface turns that off."""


def export_network(network: str, folder: Path) -> dict[str, Any]:
    """Exports the files of one network: for each method, and for the latency."""
    from sigcam.export import METHODS, export_artifact, export_classifier
    from sigcam.train.dual_branch import DualBranch
    from sigcam.train.models import load_model

    folder.mkdir(parents=True, exist_ok=True)
    loaded = load_model(network, NETWORKS[network])
    dual = DualBranch(loaded.model)
    geometry = loaded.geometry
    every = network == "efficientnet_lite0"
    asked = ClassSelection("input")
    for method in METHODS if every else ("gradcam",):
        for profile in PROFILES if method in ("cam", "gradcam") else PROFILES[:1]:
            export_artifact(
                dual, folder / f"compare-{method}-{profile}.onnx", method=method,
                profile=profile, classes=asked, geometry=geometry,
            )  # fmt: skip
    for profile in PROFILES:
        path = folder / f"time-{profile}.onnx"
        export_artifact(dual, path, method="gradcam", profile=profile, geometry=geometry)
    export_classifier(dual, folder / "classifier.onnx", geometry)
    return {"files": len(list(folder.glob("*.onnx")))}


def pictures() -> list[Array]:
    """Smooth random pictures of several sizes, uint8 [H, W, 3]."""
    rng = np.random.default_rng(0)
    found = []
    for height, width in SIZES:
        coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        found.append(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
    return found


def model_for(backend: str, path: Path, batch: int = 8) -> Path:
    """The file that the backend loads: TensorRT's engine is built beside the model."""
    if backend != "tensorrt":
        return path
    from sigcam.runtime.tensorrt.build import build_engine
    from sigcam.runtime.tensorrt.options import BuildOptions, Range

    engine = path.with_suffix(".engine")
    if not engine.is_file():
        build_engine(path, engine, BuildOptions(batches=Range(1, 1, batch)))
    return engine


def opened(backend: str, path: Path) -> Session:
    """A session on a GPU backend.

    Raises:
        CheckSkipped: the backend isn't installed or can't run here; says why.
    """
    try:
        return load(model_for(backend, path), backend)
    except BackendUnavailableError as exc:
        raise CheckSkipped(str(exc)) from exc


def differences(got: Sequence[Explanation], want: Sequence[Explanation]) -> dict[str, float]:
    """The largest differences of two sessions' answers to the same question."""
    found = {"probability": 0.0, "grid": 0.0, "grid_max": 0.0, "map_mean": 0.0, "map_max": 0.0}
    least, flags = 1.0, 0
    for one, other in zip(got, want, strict=True):
        if one.class_id != other.class_id:
            raise CheckFailed(f"class {one.class_id} came for class {other.class_id}")
        numbers = [abs(one.probability - other.probability)]
        if one.evidence is not None and other.evidence is not None:
            numbers.append(abs(one.evidence - other.evidence))
        flags += one.valid != other.valid
        scale = max(float(np.abs(other.grid).max()), 1e-12)
        grid = np.abs(one.grid - other.grid) / scale
        between = np.abs(one.map - other.map)
        for name, value in (
            ("probability", max(numbers)), ("grid", grid.mean()), ("grid_max", grid.max()),
            ("map_mean", between.mean()), ("map_max", between.max()),
        ):  # fmt: skip
            found[name] = max(found[name], float(value))
        if other.valid and one.valid:
            pair = np.corrcoef(one.grid.reshape(-1), other.grid.reshape(-1))
            least = min(least, float(pair[0, 1]))
    return {**found, "correlation": least, "wrong_flags": float(flags)}


def judge(name: str, figures: Mapping[str, float], limits: Limits) -> list[str]:
    """What is outside the limits, in words; nothing when all is well. NaN is outside."""
    problems = [
        f"{name}: {key} is off by {figures[key]:.3g}"
        for key in ("probability", "grid")
        if not figures[key] <= getattr(limits, key)
    ]
    if not figures["correlation"] >= limits.correlation:
        problems.append(f"{name}: grids correlate only {figures['correlation']:.5f}")
    if figures["wrong_flags"]:
        problems.append(f"{name}: {figures['wrong_flags']:.0f} maps are valid on one of them only")
    return problems


def compare_file(path: Path, backend: str) -> dict[str, float]:
    """One artifact on a GPU backend and on the CPU, on several pictures and classes."""
    by_class = read_spec(path).classes.mode == "input"
    question: dict[str, Any] = {"classes": list(CLASSES)} if by_class else {}
    with opened(backend, path) as gpu, load(path, "ort") as cpu:
        asked = pictures()
        got = [*gpu.explain(asked, **question), gpu.explain(asked[2], **question)]
        want = [*cpu.explain(asked, **question), cpu.explain(asked[2], **question)]
    return differences([e for one in got for e in one], [e for one in want for e in one])


def check_backend(backend: str, paths: Sequence[Path]) -> dict[str, Any]:
    """Compares every file; the problems of all of them are told."""
    if not paths:
        raise CheckFailed("there are no files to compare: their export failed")
    figures: dict[str, Any] = {}
    problems: list[str] = []
    for path in paths:
        try:
            figures[path.stem] = compare_file(path, backend)
            problems += judge(path.stem, figures[path.stem], LIMITS[backend])
        except CheckSkipped:  # noqa: PERF203 (one file must not hide the others)
            raise
        except Exception as exc:
            problems.append(f"{path.stem}: {type(exc).__name__}: {exc}")
    if problems:
        raise CheckFailed("; ".join(problems), {"differences": figures})
    return {"differences": figures}


def check_latency(backend: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Times a network without and with maps, batch 1, a picture of 480 x 640.

    "network": the classification graph alone (for "tensorrt", which builds artifacts, the
    same engine with nothing but the logits read). "grids": the profile fused. "maps": the
    profile split, with finished maps. "explain": all of it, from the decoded picture.
    """
    with ExitStack() as stack:
        kept = _time_backends(backend, folder, stack)
        session = stack.enter_context(opened(backend, folder / "time-split.onnx"))
        spec, picture = session.spec, pictures()[0]
        size = (spec.geometry.height, spec.geometry.width, 3)
        image = np.random.default_rng(0).integers(0, 256, (1, *size), dtype=np.uint8)
        request = MapRequest((place(spec.geometry, *picture.shape[:2]),), spec.nwc)
        alone = ["logits"] if backend == "tensorrt" else None
        head = ["logits", "class_ids_out"]
        calls: dict[str, Callable[[], object]] = {
            "network": lambda: kept["network"].infer({"image": image}, alone),
            "grids": lambda: kept["grids"].infer({"image": image}, [*head, "grids"]),
            "maps": lambda: kept["maps"].infer_maps({"image": image}, head, request),
            "explain": lambda: session.explain(picture)[0].map,
        }
        clocks = {name: _clock(one, stack) for name, one in kept.items() if _handle(one)}
        baselines = dict.fromkeys(("grids", "maps", "explain"), "network")
        found = measure(calls, clocks, baselines, rounds=rounds, warmup=max(20, rounds // 10))
    return {"latency": found, "rounds": rounds}


def _time_backends(backend: str, folder: Path, stack: ExitStack) -> dict[str, Backend]:
    without = "time-split.onnx" if backend == "tensorrt" else "classifier.onnx"
    files = {"network": without, "grids": "time-fused.onnx", "maps": "time-split.onnx"}
    found = {}
    for name, file in files.items():
        path = folder / file
        if not path.is_file():
            raise CheckFailed(f"there is no {file}: the network's export failed")
        try:
            one = open_backend(model_for(backend, path), backend, BackendOptions())
        except BackendUnavailableError as exc:
            raise CheckSkipped(str(exc)) from exc
        stack.callback(one.close)
        found[name] = one
    return found


def _handle(backend: Backend) -> int:
    """The handle of the stream that a backend keeps to itself; 0 where it has several."""
    return int(getattr(backend, "stream", 0))


def _clock(backend: Backend, stack: ExitStack) -> Clock:
    from sigcam.kernels import driver

    context = stack.enter_context(driver.retain_primary_context(0))
    stack.callback(context.close)
    return Clock(_handle(backend))
