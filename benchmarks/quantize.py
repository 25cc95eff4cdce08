"""What each precision costs and brings: fidelity, file size, and time over float32.

    python benchmarks/quantize.py model.onnx --data pictures/ --out results.json

Engine only: one picture, prediction and map, with the arrays ready. Every engine's ratio is to
float32 in the same engine, from alternating runs in one process. Needs the extras export and
openvino. Limits are off, so that figures below them are shown too; `--rounds 0` keeps every layer
in 8 bits.
"""

from __future__ import annotations

import json
import platform
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np

from sigcam.demo.timing import alternate
from sigcam.quantize import QuantizeOptions, quantize_artifact
from sigcam.quantize.pictures import choose, feeds
from sigcam.runtime.artifact import read_spec
from sigcam.runtime.backends import open_backend
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.progress import reporter

WAYS: dict[str, dict[str, Any]] = {
    "int8": {},
    "int8 --activations int8": {"activations": "int8"},
    "int8 --wide-weights": {"wide_weights": True},
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
}


def _in_ort(path: Path, threads: int, inputs: dict[str, Any]) -> Callable[[], object]:
    backend = open_backend(path, "ort", BackendOptions(threads=threads, spinning=False))
    return lambda: backend.infer(inputs)


def _in_openvino(path: Path, threads: int, inputs: dict[str, Any]) -> Callable[[], object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import openvino
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda: compiled(inputs)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--calibration", default=128)
@click.option("--held-out", default=256)
@click.option("--seed", default=0)
@click.option("--rounds", default=100, help="Of alternating timing.")
@click.option("--threads", default=2)
def main(
    model: Path, data: Path, out: Path, calibration: int, held_out: int, seed: int, rounds: int,
    threads: int,
) -> None:  # fmt: skip
    """Converts MODEL in every way, and writes a JSON file and a Markdown table."""
    common = {"held_out": held_out, "seed": seed, "threads": threads, "calibration": calibration}
    rows: dict[str, dict[str, Any]] = {"float32": {"bytes": model.stat().st_size}}
    with tempfile.TemporaryDirectory() as folder:
        files = {"float32": model}
        for index, (name, way) in enumerate(WAYS.items()):
            files[name] = Path(folder) / f"{index}.onnx"
            options = QuantizeOptions(**common, min_agreement=0, min_correlation=-1, **way)
            spec, _ = quantize_artifact(model, data, files[name], options, say=click.echo)
            assert spec.fidelity is not None
            rows[name] = {"bytes": files[name].stat().st_size, **asdict(spec.fidelity)}
        spec = read_spec(model)
        chosen = choose(data, spec.geometry, 0, 8, seed, reporter(False, ""))
        inputs = next(feeds(chosen.held_out, spec.geometry, spec.classes.mode == "input"))
        calls = {}
        for engine, opened in (("onnxruntime", _in_ort), ("openvino", _in_openvino)):
            for name, path in files.items():
                calls[f"{engine}: {name}"] = opened(path, threads, inputs)
        timing = alternate(calls, rounds=rounds)
        for call in calls:
            engine, name = call.split(": ")
            rows[name][f"{engine} ratio"] = timing.ratio(call, f"{engine}: float32")
            rows[name][f"{engine} ms"] = timing.median_ms(call)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": threads,
        **{name: version(name) for name in ("onnxruntime", "openvino", "numpy")},
    }
    out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    click.echo(table(rows))


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| precision | agreement | correlation, mean | worst | IoU of boxes | MB | ORT, time over "
        "float32 | OpenVINO, the same |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        numbers = [
            row.get(key, np.nan)
            for key in ("agreement", "mean_correlation", "worst_correlation", "mean_box_iou")
        ]
        cells = [
            name,
            *("" if np.isnan(number) else f"{number:.4f}" for number in numbers),
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['onnxruntime ratio']:.2f}",
            f"{row['openvino ratio']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
