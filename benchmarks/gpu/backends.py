"""GPU backends: the files that they are checked on, their answers, and their latency."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.compare import LIMITS, ask, differences, images, judge
from benchmarks.gpu.installed import NETWORKS, PROFILES, compared, missing_backend, missing_export
from benchmarks.gpu.latency import Clock, measure
from benchmarks.gpu.report import CheckFailed, CheckSkipped
from sigcam.core.artifact import read_spec
from sigcam.core.spec import ClassSelection
from sigcam.images.preprocess import place
from sigcam.runtime.backends import open_backend
from sigcam.runtime.backends.base import Backend, BackendOptions, HeatmapRequest
from sigcam.runtime.model import ExportedModel
from sigcam.runtime.session import Session, load


def export_network(network: str, folder: Path) -> dict[str, Any]:
    """Exports the files of one network: for each method, and for the latency.

    Raises:
        CheckSkipped: something that an export takes isn't installed.
    """
    missing = missing_export(network)
    if missing is not None:
        raise CheckSkipped(missing)
    from sigcam.classifier.dual_branch import DualBranch
    from sigcam.classifier.zoo import load_model
    from sigcam.export import ExportOptions, export_artifact, export_classifier

    folder.mkdir(parents=True, exist_ok=True)
    loaded = load_model(network, NETWORKS[network])
    dual = DualBranch(loaded.model)
    preprocessing = loaded.preprocessing
    asked = ClassSelection("input")
    for name, (method, profile) in compared(network).items():
        export_artifact(
            dual,
            folder / f"{name}.onnx",
            ExportOptions(
                method=method, profile=profile, classes=asked, preprocessing=preprocessing
            ),
        )
    for profile in PROFILES:
        path = folder / f"time-{profile}.onnx"
        export_artifact(
            dual,
            path,
            ExportOptions(method="gradcam", profile=profile, preprocessing=preprocessing),
        )
    export_classifier(dual, folder / "classifier.onnx", ExportOptions(preprocessing=preprocessing))
    return {"files": len(list(folder.glob("*.onnx")))}


def model_for(backend: str, path: Path, folder: Path, name: str) -> Path:
    """The file that the backend loads: for TensorRT an engine, built once in `folder`."""
    if backend != "tensorrt":
        return path
    from sigcam.convert.tensorrt.build import build_engine
    from sigcam.convert.tensorrt.options import BuildOptions, Range

    engine = folder / f"{name}.engine"
    if not engine.is_file():
        build_engine(path, engine, BuildOptions(batches=Range(1, 1, 8)))
    return engine


def options_for(backend: str, folder: Path) -> BackendOptions:
    """Backends made at first use are made anew, in `folder`, not taken from the user's cache."""
    return BackendOptions(cache=folder / "cache" if backend == "ort-tensorrt" else None)


def compare_file(path: Path, backend: str, folder: Path, name: str) -> dict[str, Any]:
    """One artifact on a GPU backend and on the CPU, on several images and classes.

    Returns:
        As `differences`; and `description` and `nodes` where the backend tells how it ran.
    """
    file = model_for(backend, path, folder, name)
    opened = open_backend(file, backend, options_for(backend, folder))
    with Session(ExportedModel(read_spec(file), opened)) as gpu, load(path, "ort") as cpu:
        found: dict[str, Any] = dict(differences(*ask(gpu, cpu)))
        # Afterwards: only then is it known whether TensorRT's work could be captured.
        for fact in ("description", "nodes"):
            if hasattr(opened, fact):
                found[fact] = getattr(opened, fact)
    return found


def check_backend(backend: str, path: Path, folder: Path, name: str) -> dict[str, Any]:
    """Compares an artifact.

    Args:
        backend: the one to compare with the CPU path.
        path: of the .onnx file.
        folder: for the backend, if the backend takes one.
        name: what the report calls the file, and the backend's name.

    Raises:
        CheckSkipped: the backend isn't installed.
        CheckFailed: the answers differ by more than the limits, or one of the two fails.
    """
    missing = missing_backend(backend)
    if missing is not None:
        raise CheckSkipped(missing)
    if not path.is_file():
        raise CheckFailed(f"{name}: there is no file to compare: its export failed")
    try:
        figures = compare_file(path, backend, folder, name)
    except Exception as exc:
        raise CheckFailed(f"{name}: {type(exc).__name__}: {exc}") from exc
    problems = judge(name, figures, LIMITS[backend])
    if problems:
        raise CheckFailed("; ".join(problems), {"differences": {name: figures}})
    return {"differences": {name: figures}}


def check_latency(backend: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Times a network without and with maps, batch 1, an image of 480 x 640.

    "network": the classification graph alone, which the others are compared with. TensorRT's
    backends are built of artifacts only, so there it has none, and "logits" is the backend of
    the maps with nothing but the logits copied back: no baseline, as it works out the rest
    too. "cams": the profile fused. "heatmaps of cams": the same with heatmaps made of them.
    "heatmaps": the profile split, with heatmaps. "explain": all of it, from the decoded image.
    """
    missing = missing_backend(backend)
    if missing is not None:
        raise CheckSkipped(missing)
    first = "logits" if backend == "tensorrt" else "network"
    files = {first: "time-split", "cams": "time-fused", "heatmaps": "time-split"}
    if first == "network":
        files[first] = "classifier"
    with ExitStack() as stack:
        kept = {name: _opened(backend, folder, file, stack) for name, file in files.items()}
        opened = _opened(backend, folder, "time-split", stack)
        session = Session(ExportedModel(read_spec(folder / "time-split.onnx"), opened))
        spec, image = session.spec, images()[0]
        size = (spec.preprocessing.height, spec.preprocessing.width, 3)
        pixels = np.random.default_rng(0).integers(0, 256, (1, *size), dtype=np.uint8)
        request = HeatmapRequest((place(spec.preprocessing, *image.shape[:2]),), spec.nwc)
        head = ["logits", "class_ids_out"]
        calls: dict[str, Callable[[], object]] = {
            first: lambda: kept[first].infer({"image": pixels}, ["logits"]),
            "cams": lambda: kept["cams"].infer({"image": pixels}, [*head, "cams"]),
            "heatmaps of cams": lambda: kept["cams"].infer_heatmaps(
                {"image": pixels}, head, replace(request, made_of=("cams",))
            ),
            "heatmaps": lambda: kept["heatmaps"].infer_heatmaps({"image": pixels}, head, request),
            "explain": lambda: session.explain(image)[0].heatmap,
        }
        clocks = {name: _clock(one, stack) for name, one in kept.items() if _handle(one)}
        against = [] if backend == "tensorrt" else [name for name in calls if name != first]
        baselines = dict.fromkeys(against, first)
        found = measure(calls, clocks, baselines, rounds=rounds, warmup=max(20, rounds // 10))
    return {"latency": found, "rounds": rounds}


def _opened(backend: str, folder: Path, name: str, stack: ExitStack) -> Backend:
    path = folder / f"{name}.onnx"
    if not path.is_file():
        raise CheckFailed(f"there is no {path.name}: the network's export failed")
    file = model_for(backend, path, folder, name)
    one = open_backend(file, backend, options_for(backend, folder))
    stack.callback(one.close)
    return one


def _handle(backend: Backend) -> int:
    """The handle of the stream that a backend keeps to itself; 0 where it has several."""
    return int(getattr(backend, "stream", 0))


def _clock(backend: Backend, stack: ExitStack) -> Clock:
    from sigcam.kernels import driver

    context = stack.enter_context(driver.retain_primary_context(0))
    stack.callback(context.close)
    return Clock(_handle(backend))
