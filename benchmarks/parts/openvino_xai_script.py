"""Runs inside openvino-xai's own environment: a classifier with and without its map.

    python openvino_xai_script.py CLASSIFICATION.onnx SECONDS

Prints one line of JSON. Imports nothing of ours but the statistics and the alternation,
which need no package.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import openvino as ov
import openvino_xai as xai

ROOT = Path(__file__).resolve().parents[2]
THREADS = 2


def main() -> None:
    """Measures and prints."""
    logging.disable(logging.WARNING)
    stats = from_file("stats", ROOT / "benchmarks" / "harness" / "stats.py")
    timing = from_file("timing", ROOT / "demo" / "timing.py")
    core = ov.Core()
    model = core.read_model(sys.argv[1])
    height, width = (dim.get_length() for dim in list(model.input(0).partial_shape)[1:3])
    model.reshape([1, height, width, 3])
    mapped = xai.insert_xai(model.clone(), xai.Task.CLASSIFICATION, xai.Method.RECIPROCAM)
    # fp32 as ours; on some processors OpenVINO would otherwise take bf16.
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": THREADS,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    requests = {
        name: core.compile_model(one, "CPU", settings).create_infer_request()
        for name, one in (("classification", model), ("map", mapped))
    }
    image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    calls = {name: lambda r=request: r.infer([image]) for name, request in requests.items()}
    for _ in range(2):
        start = time.perf_counter()
        for call in calls.values():
            call()
    rounds = max(7, min(100, int(float(sys.argv[2]) / (time.perf_counter() - start))))
    found = timing.alternate(calls, rounds, warmup=1).seconds
    pairs = zip(found["map"], found["classification"], strict=True)
    figures = {
        "openvino": ov.__version__,
        "rounds": rounds,
        "ms": {name: list(stats.estimate([1e3 * s for s in v])) for name, v in found.items()},
        "ratio": list(stats.estimate([a / b for a, b in pairs])),
    }
    print(json.dumps(figures))


def from_file(name: str, path: Path) -> ModuleType:
    """Imports a module from its file, because sigcam is not installed in this environment."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
