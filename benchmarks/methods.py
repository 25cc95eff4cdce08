"""What every method costs on the paper's backbones: docs/overhead.md.

    python benchmarks/methods.py [--network NAME] [--method NAME] [--rounds N]
        [--no-grad-cam] [--folder FOLDER] [--out FILE.json] [--page docs/overhead.md]

For each network and method: the artifact (sigmoid branch, top1, profile fused, random
seeded weights) against the same network without a map (`export_classifier`), in ONNX
Runtime fp32, batch 1, two threads that don't spin. The classification graph is loaded a
second time as a control. The three alternate in one process, in an order drawn anew each
round; a ratio is the median over the rounds of the ratio within each round. Before
anything is timed, the two graphs must agree on the logits; the error of the maps is that
of the file's own certificate.

Then the same maps by the package grad-cam in PyTorch, from the picture in memory to the
map at its size, on the same two threads; both must agree on the map first.

Times need a quiet machine. The command prints the load before it starts and writes what
it has after every network, so that it can be stopped and a part run again: figures in
FILE.json that aren't measured anew stay. `--folder` keeps the exported files, and uses
those that are there.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from methods_page import limit, page

from sigcam.demo.timing import alternate
from sigcam.export import export_artifact, export_classifier
from sigcam.export.methods import METHODS
from sigcam.runtime.artifact import read_spec
from sigcam.runtime.backends import backend_class
from sigcam.runtime.backends.base import Backend, BackendOptions
from sigcam.runtime.errors import ExportError
from sigcam.runtime.files import write_text
from sigcam.train.dual_branch import DualBranch
from sigcam.train.models import LoadedModel, load_model

THREADS = 2
NETWORKS = (
    "wsol-resnet50", "wsol-vgg16", "wsol-inceptionv3", "resnet50", "inception_v3", "vgg16",
)  # fmt: skip
GRAD_CAM_NETWORKS = ("resnet50", "vgg16")

Figures = dict[str, Any]


class Network:
    """A network and its files; exported when they are first needed."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder / name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._made: tuple[LoadedModel, DualBranch] | None = None

    def classifier(self) -> Path:
        """The network without a map."""
        path = self._folder / "classification.onnx"
        if not path.is_file():
            loaded, dual = self._parts()
            export_classifier(dual, path, loaded.geometry)
        return path

    def artifact(self, method: str, **options: Any) -> Path:
        """The network with a map; of the sigmoid branch unless the options say otherwise.

        Raises:
            ExportError: the method can't express the network's head.
        """
        kind = "".join(f"-{value}" for value in options.values())
        path = self._folder / f"{method}{kind}.onnx"
        if not path.is_file():
            loaded, dual = self._parts()
            export_artifact(dual, path, method=method, geometry=loaded.geometry, **options)
        return path

    def model(self) -> Any:
        """The PyTorch module itself."""
        return self._parts()[0].model

    def _parts(self) -> tuple[LoadedModel, DualBranch]:
        if self._made is None:
            loaded = load_model(self.name, "random")
            size = (loaded.geometry.height, loaded.geometry.width)
            # No cropping: a picture of the input's size is the input.
            geometry = replace(loaded.geometry, rule="stretch", resize=None)
            loaded = replace(loaded, geometry=geometry)
            self._made = loaded, DualBranch(loaded.model, input_size=size)
        return self._made


def open_graph(path: Path) -> Backend:
    """In ONNX Runtime, as every figure of the page is taken."""
    return backend_class("ort").open(path, BackendOptions(threads=THREADS, spinning=False))


def measure(network: Network, methods: list[str], rounds: int) -> Figures:
    """The figures of one network, for these methods."""
    plain = network.classifier()
    base, control = open_graph(plain), open_graph(plain)
    shape = [size or 1 for size in base.inputs[0].shape]
    feeds = {"image": np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)}
    found: Figures = {"classification_mb": megabytes(plain), "methods": {}}
    for method in methods:
        try:
            path = network.artifact(method)
        except ExportError as exc:
            found["methods"][method] = {"refused": str(exc)}
            continue
        gc.collect()
        graph = open_graph(path)
        check_logits(base.infer(feeds)["logits"], graph.infer(feeds)["logits"])
        calls: dict[str, Callable[[], object]] = {
            "classification": lambda: base.infer(feeds),
            "control": lambda: control.infer(feeds),
            "map": lambda graph=graph: graph.infer(feeds),  # type: ignore[misc]
        }
        timing = alternate(calls, rounds, warmup=5)
        graph.close()
        found["methods"][method] = {
            "classification_ms": timing.median_ms("classification"),
            "map_ms": timing.median_ms("map"),
            "ratio": timing.ratio("map", "classification"),
            "control": timing.ratio("control", "classification"),
            "limit": limit(network.name, method),
            "rounds": rounds,
            "mb": megabytes(path),
            **certificate(path),
        }
        say(network.name, method, found["methods"][method])
    return found


def check_logits(plain: Any, mapped: Any) -> None:
    """Stops the run where the two graphs aren't the same classifier."""
    if not np.allclose(plain, mapped, rtol=1e-4, atol=1e-4 * np.abs(plain).max()):
        raise SystemExit("the graphs disagree about the logits; nothing was timed")


def certificate(path: Path) -> Figures:
    """The largest relative error of the grids, and pictures left out for a rounding kink."""
    parity = read_spec(path).parity
    if parity is None:
        raise SystemExit(f"{path} has no certificate")
    return {"error": parity.outputs["grids"].max_rel, "left_out": parity.left_out}


def megabytes(path: Path) -> float:
    """Of the weights in a file."""
    graph = onnx.load(path, load_external_data=False).graph
    return sum(len(tensor.raw_data) for tensor in graph.initializer) / 1e6


def machine() -> Figures:
    """What the figures depend on."""
    names = {line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")}
    packages = ("onnxruntime", "torch", "torchvision", "onnx", "numpy")
    return {
        "processor": ", ".join(sorted(names)) or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def say(*parts: object) -> None:
    """A line of progress."""
    texts = []
    for part in parts:
        if isinstance(part, dict):
            part = ", ".join(f"{k} {v:.4g}" for k, v in part.items() if isinstance(v, (int, float)))
        texts.append(str(part))
    click.echo("  ".join(texts))


def merged(old: Figures, new: Figures) -> Figures:
    """`new` over `old`, level by level."""
    both = dict(old)
    for key, value in new.items():
        nested = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if nested else value
    return both


@click.command()
@click.option("--network", "networks", multiple=True, type=click.Choice(NETWORKS))
@click.option("--method", "methods", multiple=True, type=click.Choice(list(METHODS)))
@click.option("--rounds", default=60, show_default=True)
@click.option("--grad-cam/--no-grad-cam", default=True, help="Also time the package grad-cam.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the exported files here.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/methods.json"),
    show_default=True,
)  # fmt: skip
@click.option("--page", "page_path", type=click.Path(path_type=Path), help="Write the page too.")
def main(
    networks: tuple[str, ...],
    methods: tuple[str, ...],
    rounds: int,
    grad_cam: bool,
    folder: Path | None,
    out: Path,
    page_path: Path | None,
) -> None:
    """Measures methods times networks, prints the tables and writes them."""
    say(f"load before the start: {os.getloadavg()[0]:.2f}")
    figures: Figures = json.loads(out.read_text()) if out.is_file() else {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in networks or NETWORKS:
            network = Network(name, folder or Path(temporary))
            new: Figures = {"machine": machine(), "networks": {}}
            new["networks"][name] = measure(network, list(methods or METHODS), rounds)
            if grad_cam and name in GRAD_CAM_NETWORKS:
                from grad_cam import compare  # torch and grad-cam only where they are timed

                new["grad_cam"] = {name: compare(network, rounds)}
            figures = merged(figures, new)
            out.parent.mkdir(parents=True, exist_ok=True)
            write_text(out, json.dumps(figures, indent=1) + "\n")
            gc.collect()
    text = page(figures, NETWORKS, list(METHODS))
    click.echo(text)
    if page_path is not None:
        write_text(page_path, text)


if __name__ == "__main__":
    main()
