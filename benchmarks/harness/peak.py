"""Peak memory of a process that does nothing but load a model and run it.

    python benchmarks/harness/peak.py MODEL.onnx --backend ort --threads 2 --batch 1

Prints the peak in megabytes. `peak_memory` runs this in a process of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
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
        backend: name of the engine.
        threads: of one inference.
        batch: pictures in a run.
        classes: for artifacts that take class ids: how many per picture.
    """
    command = [sys.executable, __file__, str(path)]
    for name, value in (
        ("backend", backend), ("threads", threads), ("batch", batch), ("classes", classes),
    ):  # fmt: skip
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


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


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--backend", default="ort")
@click.option("--threads", default=2)
@click.option("--batch", default=1)
@click.option("--classes", default=0)
def main(path: Path, backend: str, threads: int, batch: int, classes: int) -> None:
    """Prints the peak."""
    from sigcam.runtime.backends import backend_class
    from sigcam.runtime.backends.base import BackendOptions

    options = BackendOptions(threads=threads, spinning=False)
    engine = backend_class(backend).open(path, options)
    shape = [size or batch for size in engine.inputs[0].shape]
    feeds = {"image": np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)}
    if classes:
        feeds["class_ids"] = np.tile(np.arange(classes, dtype=np.int64), (batch, 1))
    for _ in range(RUNS):
        engine.infer(feeds)
    click.echo(f"{own_peak():.0f}")


if __name__ == "__main__":
    main()
