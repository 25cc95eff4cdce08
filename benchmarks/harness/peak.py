"""Peak memory of a process that does one thing: run a model, or a command of sigcam's.

    python -m benchmarks.harness.peak graph MODEL.onnx --backend ort --threads 2 --batch 1
    python -m benchmarks.harness.peak sigcam explain MODEL.onnx FOLDER ...

Prints the peak in megabytes as the last line. `peak_memory`, `explain_folder` and
`evaluate_data` run this in a process of its own.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

RUNS = 3


def peak_memory(
    path: Path, *, backend: str = "ort", threads: int = 2, batch: int = 1, classes: int = 0
) -> float:
    """Megabytes, of a fresh process that runs the model on this batch.

    Args:
        path: of the graph.
        backend: name of the backend.
        threads: of one inference.
        batch: images in a run.
        classes: for artifacts that take class ids: how many per image.
    """
    words = ["graph", str(path)]
    for name, value in (
        ("backend", backend), ("threads", threads), ("batch", batch), ("classes", classes),
    ):  # fmt: skip
        words += [f"--{name}", str(value)]
    return float(_last_lines(words)[-1])


def explain_folder(path: Path, folder: Path, out: Path | None, *, threads: int) -> dict[str, float]:
    """`sigcam explain MODEL FOLDER` in a fresh process, with ONNX Runtime on the CPU.

    Args:
        path: of the artifact.
        folder: of the images.
        out: folder that the maps are written to, as PNG files; None writes none.
        threads: of the backend.

    Returns:
        "peak_mb", "per_second" (images) and "backend_busy", the share of the time that the
        backend ran, 0 to 1.
    """
    words = ["sigcam", "explain", str(path), str(folder), "--verbose", "--backend", "ort"]
    words += ["--threads", str(threads), *([] if out is None else ["--out", str(out)])]
    *_, told, peak = _last_lines(words)
    found = re.search(r"([\d.]+) a second; the backend ran (\d+)% of the time", told)
    if found is None:
        raise SystemExit(f"`sigcam explain --verbose` must tell its rate, said {told!r}")
    return {
        "peak_mb": float(peak),
        "per_second": float(found[1]),
        "backend_busy": int(found[2]) / 100,
    }


def evaluate_data(
    paths: Sequence[Path], data: Path, out: Path, *, threads: int
) -> dict[str, float]:
    """`sigcam evaluate MODELS --data DATA` in a fresh process, with ONNX Runtime on the CPU.

    Args:
        paths: of the artifacts.
        data: folder of the data set.
        out: folder of the report, a new one.
        threads: of the backend.

    Returns:
        "peak_mb", "seconds" (of the images, without opening and report) and "backend_busy".
    """
    words = ["sigcam", "evaluate", *map(str, paths), "--data", str(data), "--out", str(out)]
    lines = _last_lines([*words, "--backend", "ort", "--threads", str(threads)])
    found = re.search(r"images in ([\d.]+) s, (\d+)% of it in a backend", "\n".join(lines))
    if found is None:
        raise SystemExit(f"`sigcam evaluate` must tell its time, said {lines[-2:]!r}")
    return {
        "peak_mb": float(lines[-1]),
        "seconds": float(found[1]),
        "backend_busy": int(found[2]) / 100,
    }  # fmt: skip


def _last_lines(words: list[str]) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.harness.peak", *words]
    done = subprocess.run(
        command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
    return done.stderr.splitlines()


def own_peak() -> float:
    """Peak resident size of this process in megabytes.

    Linux's ru_maxrss counts what the parent had before the program was loaded, which for a
    benchmark is gigabytes; VmHWM doesn't.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


@click.group()
def main() -> None:
    """Prints the peak, on standard error."""


@main.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--backend", default="ort")
@click.option("--threads", default=2)
@click.option("--batch", default=1)
@click.option("--classes", default=0)
def graph(path: Path, backend: str, threads: int, batch: int, classes: int) -> None:
    """Of a few runs of the bare backend."""
    from sigcam.runtime.backends import backend_class
    from sigcam.runtime.backends.base import BackendOptions

    options = BackendOptions(threads=threads, spinning=False)
    backend = backend_class(backend).open(path, options)
    shape = [size or batch for size in backend.inputs[0].shape]
    feeds = {"image": np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)}
    if classes:
        feeds["class_ids"] = np.tile(np.arange(classes, dtype=np.int64), (batch, 1))
    for _ in range(RUNS):
        backend.infer(feeds)
    click.echo(f"{own_peak():.0f}", err=True)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def sigcam(words: tuple[str, ...]) -> None:
    """Of the command `sigcam` with these words."""
    from sigcam.cli import main as command

    command(list(words), standalone_mode=False)
    click.echo(f"{own_peak():.0f}", err=True)


if __name__ == "__main__":
    main()
