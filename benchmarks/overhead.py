"""What a map costs: the artifact against the same network without a map.

    python benchmarks/overhead.py [--arch NAME] [--rounds N] [--threads N] [--out FILE.json]

Prints two tables. "Engine only" times the graph on a prepared input; "end to end" times
`Session.explain` on a decoded 640x480 picture, the map in the picture's own size
included. The engines wait without spinning, as several of them share the process. All
calls of a table alternate in one run; a ratio is the median over the rounds of the ratio
within each round. "control" is the classification graph loaded a second time: how far it
is from 1 is the noise. The outputs are checked before anything is timed.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np

from sigcam.demo.timing import Timing, alternate
from sigcam.export import export_artifact, export_classifier
from sigcam.runtime.artifact import read_spec
from sigcam.runtime.backends import backend_class
from sigcam.runtime.backends.base import Backend, BackendOptions
from sigcam.runtime.files import write_text
from sigcam.runtime.geometry import prepare
from sigcam.runtime.session import Session
from sigcam.train.dual_branch import DualBranch
from sigcam.train.models import load_model

PICTURE_SIZE = (480, 640)


@dataclass(frozen=True)
class Bench:
    """The graphs of one network, loaded, and a picture for them."""

    session: Session
    classifier: Backend
    control: Backend
    fused: Backend
    split: Backend
    picture: Any
    feeds: dict[str, Any]

    def check(self) -> None:
        """The graphs agree on the prediction, and the map is a map."""
        plain = self.classifier.infer(self.feeds)["logits"]
        for backend in (self.fused, self.split):
            logits = backend.infer(self.feeds)["logits"]
            if not np.allclose(plain, logits, rtol=1e-4, atol=1e-4):
                raise SystemExit("the graphs disagree about the logits; nothing was timed")
        found = self.session.explain(self.picture)[0]
        if found.map.shape != PICTURE_SIZE or not found.valid:
            raise SystemExit("explain() gave no valid map; nothing was timed")

    def engine_calls(self) -> dict[str, Callable[[], object]]:
        """Engine only: the classifier, twice, and the artifact in both profiles."""
        return {
            "classification": lambda: self.classifier.infer(self.feeds),
            "control": lambda: self.control.infer(self.feeds),
            "fused": lambda: self.fused.infer(self.feeds),
            "split": lambda: self.split.infer(self.feeds),
        }

    def explain_calls(self) -> dict[str, Callable[[], object]]:
        """End to end beside its own engine run."""
        return {
            "engine": lambda: self.fused.infer(self.feeds),
            "explain": lambda: self.session.explain(self.picture)[0].map,
        }


def build(arch: str, folder: Path, threads: int | None) -> Bench:
    """Exports and loads the graphs (random weights: the time doesn't depend on them)."""
    loaded = load_model(arch, "random")
    dual = DualBranch(loaded.model)
    geometry = loaded.geometry
    files = {name: folder / f"{name}.onnx" for name in ("classifier", "fused", "split")}
    export_classifier(dual, files["classifier"], geometry)
    for profile in ("fused", "split"):
        export_artifact(dual, files[profile], profile=profile, geometry=geometry)
    # Several engines in one process would spin against each other.
    options = BackendOptions(threads=threads, spinning=False)
    engine = backend_class("ort")
    fused = engine.open(files["fused"], options)
    picture = np.random.default_rng(0).integers(0, 256, (*PICTURE_SIZE, 3), dtype=np.uint8)
    prepared, _ = prepare(picture, geometry)
    return Bench(
        session=Session(read_spec(files["fused"]), fused),
        classifier=engine.open(files["classifier"], options),
        control=engine.open(files["classifier"], options),
        fused=fused,
        split=engine.open(files["split"], options),
        picture=picture,
        feeds={"image": prepared[None]},
    )


def table(title: str, timing: Timing, base: str) -> None:
    """Prints medians and ratios."""
    click.echo(f"\n{title}")
    for name in timing.seconds:
        ratio = timing.ratio(name, base)
        click.echo(f"  {name:<16} {timing.median_ms(name):8.3f} ms   ratio {ratio:.3f}")


@click.command()
@click.option("--arch", default="efficientnet_lite0", show_default=True)
@click.option("--rounds", default=400, show_default=True)
@click.option("--threads", type=int, default=None, help="Threads of one inference.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the figures as JSON.")
def main(arch: str, rounds: int, threads: int | None, out: Path | None) -> None:
    """Times the artifact of ARCH against the classification-only graph."""
    with tempfile.TemporaryDirectory() as folder:
        bench = build(arch, Path(folder), threads)
        bench.check()
        engine = alternate(bench.engine_calls(), rounds)
        explain = alternate(bench.explain_calls(), rounds)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "onnxruntime": version("onnxruntime"),
        "architecture": arch,
        "rounds": rounds,
    }
    click.echo(", ".join(f"{name} {value}" for name, value in machine.items()))
    table("engine only, batch 1, top1", engine, "classification")
    table("end to end, decoded 640x480 picture to map, over the engine run", explain, "engine")
    if out is not None:
        figures = {
            "machine": machine,
            "engine_only_s": dict(engine.seconds),
            "end_to_end_s": dict(explain.seconds),
        }
        write_text(out, json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
