"""Which graphs TensorRT-RTX's builder compiles, for which GPUs. Needs no GPU.

    python -m benchmarks.coverage.tensorrt [--network NAME] [--method NAME] [--size 64]
        [--capability X.Y] [--out FILE.json]

For the paper's backbones (random seeded weights, 20 classes), each method of the graph and
both profiles: the artifact is exported, classes named at run time, and an engine is built in
float32 and in float16 for all compute capabilities together. If that fails, each is built by
itself, to say which. A build ends with a serialised engine or the builder's own words.
Kernels are chosen where the engine is loaded, so this says that the builder accepts the
graph, and nothing of its speed.

TensorRT-RTX multiplies no float32 matrices on compute capability 7.5, so the float32 engine
is for the later ones; that 7.5 is still refused is tried once for each backbone. The command
ends with exit code 1 if anything fails. A line for each export goes to standard output as it
is done.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.zoo import load_model
from sigcam.convert.tensorrt.build import build_engine
from sigcam.convert.tensorrt.options import BuildOptions
from sigcam.core.errors import SigcamError
from sigcam.core.files import write_text
from sigcam.core.sidecar import EnginePrecision
from sigcam.core.spec import ClassSelection, Preprocessing
from sigcam.export import ExportOptions, export_artifact
from sigcam.export.methods import METHODS
from sigcam.runtime.backends.tensorrt.package import choose

NETWORKS = ("wsol-resnet50", "wsol-vgg16", "wsol-inceptionv3")
PROFILES = ("fused", "split")
PRECISIONS: tuple[EnginePrecision, ...] = ("float32", "float16")
NO_FLOAT32 = "FP32 GEMM is not supported"
TURING = "7.5"

Row = dict[str, Any]

# Those that both profiles can be built of.
WITH_WEIGHTS = [name for name, one in METHODS.items() if one.gives_weights]


def built(model: Path, capabilities: tuple[str, ...], precision: EnginePrecision) -> Row:
    """One build: how long it took, or why it failed."""
    options = BuildOptions(package="tensorrt_rtx", capabilities=capabilities, precision=precision)
    begun = time.perf_counter()
    row: Row = {"capabilities": capabilities, "precision": precision}
    try:
        engine = build_engine(model, model.with_name("matrix.rtx.engine"), options)
    except SigcamError as exc:
        return {**row, "result": "failed", "why": str(exc)}
    seconds = round(time.perf_counter() - begun, 2)
    return {**row, "result": "built", "seconds": seconds, "bytes": engine.stat().st_size}


def builds(model: Path, capabilities: tuple[str, ...]) -> list[Row]:
    """Both precisions for all capabilities, and each by itself where that fails."""
    rows = []
    for precision in PRECISIONS:
        wanted = tuple(c for c in capabilities if precision == "float16" or c != TURING)
        if not wanted:
            continue
        row = built(model, wanted, precision)
        alone = [] if row["result"] == "built" else [built(model, (c,), precision) for c in wanted]
        rows += alone or [row]
    return rows


def network(name: str, size: int) -> tuple[DualBranch, Preprocessing]:
    """A backbone of the paper with both branches, for images of [size, size]."""
    loaded = load_model(name, num_classes=20)
    dual = DualBranch(loaded.model, None, input_size=(size, size), architecture=name)
    return dual, replace(loaded.preprocessing, height=size, width=size)


@click.command()
@click.option("--network", "networks", multiple=True, type=click.Choice(NETWORKS))
@click.option("--method", "methods", multiple=True, type=click.Choice(WITH_WEIGHTS))
@click.option("--size", type=click.IntRange(min=32), help="Input side; 64, Inception's 80.")
@click.option("--capability", "capabilities", multiple=True)
@click.option("--out", type=click.Path(path_type=Path))
def main(
    networks: tuple[str, ...],
    methods: tuple[str, ...],
    size: int | None,
    capabilities: tuple[str, ...],
    out: Path | None,
) -> None:
    """Build everything and say what failed."""
    package = choose("tensorrt_rtx")
    named = capabilities or tuple(package.capabilities)
    click.echo(f"{package.name} {package.version}, compute capabilities {', '.join(named)}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matrix.onnx"
        for name in networks or NETWORKS:
            dual, preprocessing = network(name, size or (80 if "inception" in name else 64))
            for method, profile in itertools.product(methods or WITH_WEIGHTS, PROFILES):
                about = {"network": name, "method": method, "profile": profile}
                classes = ClassSelection("input")
                export_artifact(
                    dual,
                    path,
                    ExportOptions(
                        method=method, profile=profile, classes=classes, preprocessing=preprocessing
                    ),
                )
                some = [{**about, **row} for row in builds(path, named)]
                rows += some
                _tell(about, some)
            if TURING in named:
                refused = built(path, (TURING,), "float32")
                still = NO_FLOAT32 in refused.get("why", "")
                click.echo(f"{name}: float32 for {TURING} {'refused' if still else 'not refused'}")
    failed = [row for row in rows if row["result"] == "failed"]
    if out is not None:
        write_text(out, json.dumps({"builder": package.version, "builds": rows}, indent=1) + "\n")
    counts = {r: sum(row["result"] == r for row in rows) for r in {row["result"] for row in rows}}
    click.echo(", ".join(f"{result}: {count}" for result, count in sorted(counts.items())))
    raise SystemExit(1 if failed else 0)


def _tell(about: Row, rows: list[Row]) -> None:
    said = [
        f"{row['precision']} {row['result']} for {', '.join(row['capabilities'])}"
        + (f" ({row['why']})" if "why" in row else "")
        for row in rows
    ]
    click.echo(f"{' '.join(about.values())}: {'; '.join(said)}")


if __name__ == "__main__":
    main()
