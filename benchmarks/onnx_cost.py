"""Times maps of a ResNet-50 that was read from ONNX files, against the files themselves.

    python -m benchmarks.onnx_cost --threads 2

Three files: of torch.onnx's old exporter and of its new one, and one that takes its channels last:
Keras's own ResNet-50 where keras is installed (it runs on PyTorch here), else torchvision's behind
a transposition. Weights are random. The file and the artifact run on ONNX Runtime with as many
threads, one image at a time, in turns; the ratio is the median of the ratios within each round.
Artifacts are timed with the input that the file takes (normalised float32), so that the map is
all that is more; beside it stands the ratio with raw bytes, which the artifact normalises itself.
Reading and exporting are timed as they come, which asks for a machine that does nothing else; the
processor's time, of all cores together, stands beside it and hardly depends on that. (PyTorch's
threads should not spin while they wait for it: OMP_WAIT_POLICY=passive.)
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import torch
import torchvision
from torch import Tensor, nn

from sigcam import ExportOptions, build_classifier, export_artifact
from sigcam.core.errors import ExportError
from sigcam.demo.timing import alternate

MOST, MOST_SECONDS = 1.02, 30.0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
METHODS = ("cam", "gradcam")
SOURCES = ("torch.onnx, old exporter", "torch.onnx, new exporter", "channels last")


@click.command()
@click.option(
    "--rounds", type=click.IntRange(1), default=60, show_default=True, help="Runs of each."
)
@click.option(
    "--threads", type=click.IntRange(1), default=2, show_default=True,
    help="Of ONNX Runtime and PyTorch.",
)  # fmt: skip
@click.option(
    "--source", "sources", type=click.Choice(SOURCES), multiple=True, default=SOURCES,
    show_default="all", help="Repeatable.",
)  # fmt: skip
def main(rounds: int, threads: int, sources: tuple[str, ...]) -> None:
    """Times maps of imported files; prints some lines for each source."""
    torch.set_num_threads(threads)
    for source in sources:
        with tempfile.TemporaryDirectory() as folder:
            click.echo(_measured(source, Path(folder), rounds, threads))


def _measured(source: str, folder: Path, rounds: int, threads: int) -> str:
    file = folder / "resnet50.onnx"
    name = _write(source, file)
    start, used = time.perf_counter(), time.process_time()
    built = build_classifier(str(file), size=224, mean=MEAN, std=STD)
    read, used = time.perf_counter() - start, time.process_time() - used
    calls = {"file": _file_call(file, threads)}
    exporting, busy, refused = [], [], dict[str, str]()
    for method in METHODS:
        for layout in ("float32_nchw", "uint8_nhwc"):
            out = folder / f"{method}-{layout}.onnx"
            options = ExportOptions(
                method=method, branch="softmax",
                preprocessing=replace(built.preprocessing, layout=layout),
            )  # fmt: skip
            start, begun = time.perf_counter(), time.process_time()
            try:
                spec = export_artifact(built, out, options)
            except ExportError as exc:
                refused[method] = str(exc)
                continue
            exporting.append(time.perf_counter() - start)
            busy.append(time.process_time() - begun)
            calls[f"{method} {layout}"] = _artifact_call(out, layout, threads)
    timing = alternate(calls, rounds=rounds, warmup=5)
    lines = [f"{name}: {spec.source.front}"]
    lines += [f"  {method}: refused: {reason}" for method, reason in refused.items()]
    for method in (one for one in METHODS if one not in refused):
        ratio = timing.ratio(f"{method} float32_nchw", over="file")
        raw = timing.ratio(f"{method} uint8_nhwc", over="file")
        verdict = "within" if ratio <= MOST else "ABOVE"
        lines.append(f"  {method}: {ratio:.3f} of the file, {verdict} {MOST} (bytes: {raw:.3f})")
    whole = read + max(exporting)
    verdict = "within" if whole <= MOST_SECONDS else "ABOVE"
    lines.append(
        f"  file {timing.median_ms('file'):.1f} ms; read in {read:.1f} s, exported in "
        f"{min(exporting):.1f} to {max(exporting):.1f} s, together {verdict} {MOST_SECONDS:g} s; "
        f"{used + max(busy):.1f} s of processor time"
    )
    return "\n".join(lines)


class _ChannelsLast(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.permute(0, 3, 1, 2))
        return logits


def _write(source: str, file: Path) -> str:
    """Writes a file; returns what it is."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    old = {"dynamo": False, "opset_version": 13, "dynamic_axes": {"x": {0: "b"}, "y": {0: "b"}}}
    model: nn.Module = torchvision.models.resnet50(weights=None).eval()
    example = torch.zeros(2, 3, 224, 224)
    if source == "torch.onnx, new exporter":
        shapes = ({0: torch.export.Dim("b")},)
        options |= {"dynamo": True, "dynamic_shapes": shapes, "verbose": False}
    elif source == "channels last":
        example, options = example.permute(0, 2, 3, 1), options | old
        if importlib.util.find_spec("keras"):
            source, model = "Keras, channels last", _keras()
        else:
            source, model = "torchvision, channels last", _ChannelsLast(model)
    else:
        options |= old
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (example,), str(file), **options)
    return source


def _keras() -> nn.Module:
    os.environ["KERAS_BACKEND"] = "torch"
    keras = importlib.import_module("keras")
    model: nn.Module = keras.applications.ResNet50(weights=None).eval()
    return model


def _session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _file_call(file: Path, threads: int) -> Callable[[], object]:
    session = _session(file, threads)
    (taken,) = session.get_inputs()
    shape = (1, 224, 224, 3) if taken.shape[3] == 3 else (1, 3, 224, 224)
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return lambda: session.run(None, {taken.name: image})


def _artifact_call(file: Path, layout: str, threads: int) -> Callable[[], object]:
    session = _session(file, threads)
    random = np.random.default_rng(0)
    if layout == "uint8_nhwc":
        image = random.integers(0, 256, (1, 224, 224, 3)).astype(np.uint8)
    else:
        image = random.standard_normal((1, 3, 224, 224)).astype(np.float32)
    return lambda: session.run(None, {"image": image})


if __name__ == "__main__":
    main()
