"""How time and memory grow: batch, threads, classes, size of the input, size of the image."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import markdown
from benchmarks.harness import plots as drawing
from benchmarks.harness.backends import FP32, THREADS, open_graph
from benchmarks.harness.context import Context
from benchmarks.harness.measure import Effort
from benchmarks.harness.measure import measure as time_calls
from benchmarks.harness.networks import Network, batch_of, jpeg, random_image
from benchmarks.harness.peak import peak_memory
from benchmarks.harness.targets import TARGETS, Reached
from sigcam.core.artifact import read_spec
from sigcam.core.spec import ClassSelection
from sigcam.runtime.model import ExportedModel
from sigcam.runtime.session import Session

Figures = dict[str, Any]

NETWORKS = ("resnet50",)
QUICK = ("resnet18",)
BATCHES, QUICK_BATCHES = (1, 2, 4, 8, 16, 32), (1, 4)
CLASSES, QUICK_CLASSES = (1, 10, 100, 1000), (1, 10)
INPUTS, QUICK_INPUTS = (224, 320, 448), (224,)
IMAGES = {"320x240": (240, 320), "640x480": (480, 640), "1920x1080": (1080, 1920),
            "4000x3000": (3000, 4000)}  # fmt: skip
QUICK_IMAGES = ("320x240", "640x480")
CLASSES_LIMIT = TARGETS["classes"].limit

TEXT = f"""
Method cam, ONNX Runtime fp32, {THREADS} threads unless the table is about them. Times of one table
alternate in one process. "over classification" is the same against the network without a map.
Memory is the peak of a fresh process that does nothing but load the graph and run it, in MB; for
images it is left out, as the backend doesn't see their size. Classes are maps of K named classes
of one image after one backbone pass (`--classes input`), CAMs only; the target is at most
{CLASSES_LIMIT:.2f} times the time of one for 100.
"""


def measure(context: Context) -> Figures:
    """Each axis by network."""
    found = {}
    for name in context.chosen(NETWORKS, QUICK):
        network = context.network(name)
        found[name] = {
            "batch": _batches(context, network),
            "threads": _threads(context, network),
            "classes": _classes(context, network),
            "input": _inputs(context, network),
            "image": _images(context, network),
        }
    return {"networks": found}


def _over_plain(
    effort: Effort, plain: Path, mapped: Path, batch: int, threads: int = THREADS
) -> Figures:
    """Time, ratio and both peaks of one size."""
    base, graph = (open_graph(FP32, path, threads) for path in (plain, mapped))
    feeds = {"image": batch_of(base.inputs[0].shape, batch)}
    timed = time_calls(
        {"classification": lambda: base.infer(feeds), "map": lambda: graph.infer(feeds)},
        {"map": "classification"},
        effort,
    )
    base.close()
    graph.close()
    memory = {
        name: peak_memory(path, batch=batch, threads=threads)
        for name, path in (("classification", plain), ("map", mapped))
    }
    return {**timed, "memory_mb": memory}


def _short(context: Context) -> Effort:
    """Cases of this part are many, and some take a second a call."""
    return Effort(context.effort.seconds, 3, context.effort.most, context.effort.rounds)


def _batches(context: Context, network: Network) -> Figures:
    files = network.classifier(), network.artifact("cam")
    found = {}
    for batch in context.some(BATCHES, QUICK_BATCHES):
        found[str(batch)] = _over_plain(_short(context), *files, batch)
        context.say(f"  batch {batch}: {found[str(batch)]['ms']['map'][0]:.1f} ms")
    return found


def _threads(context: Context, network: Network) -> Figures:
    files = network.classifier(), network.artifact("cam")
    cores = os.cpu_count() or 1
    counts = sorted({1, 2, *(2**k for k in range(2, 8) if 2**k <= cores), cores})
    return {str(n): _over_plain(_short(context), *files, 1, n) for n in counts if n <= cores}


def _classes(context: Context, network: Network) -> Figures:
    path = network.artifact("cam", classes=ClassSelection("input"))
    backend = open_graph(FP32, path)
    image = batch_of(backend.inputs[0].shape, 1)
    known = read_spec(path).num_classes
    counts = [count for count in context.some(CLASSES, QUICK_CLASSES) if count <= known]
    calls = {
        str(count): partial(
            backend.infer, {"image": image, "class_ids": np.arange(count, dtype=np.int64)[None]}
        )
        for count in counts
    }
    timed = time_calls(calls, {str(count): "1" for count in counts[1:]}, context.effort)
    backend.close()
    memory = {str(count): peak_memory(path, classes=count) for count in counts}
    context.say(f"  classes: {timed['ratios']}")
    return {**timed, "memory_mb": memory}


def _inputs(context: Context, own: Network) -> Figures:
    usual = read_spec(own.artifact("cam")).preprocessing
    found = {}
    for size in context.some(INPUTS, QUICK_INPUTS):
        same = size == usual.height == usual.width
        network = own if same else context.network(own.name, size=size)
        path = network.artifact("cam")
        cam = read_spec(path).feature_shapes[0][1:]
        row = _over_plain(_short(context), network.classifier(), path, 1)
        found[str(size)] = {**row, "cam": "x".join(map(str, cam))}
    return found


def _images(context: Context, network: Network) -> Figures:
    path = network.artifact("cam")
    backend = open_graph(FP32, path)
    session = Session(ExportedModel(read_spec(path), backend))
    files = {
        name: jpeg(random_image(*IMAGES[name])) for name in context.some(list(IMAGES), QUICK_IMAGES)
    }
    calls = {
        name: lambda file=file: session.explain(file)[0].heatmap  # type: ignore[misc]
        for name, file in files.items()
    }
    base = next(iter(files))
    timed = time_calls(calls, dict.fromkeys(list(files)[1:], base), context.effort)
    session.close()
    return timed


def section(figures: Figures) -> str:
    """A table for each axis."""
    parts = [TEXT]
    for name, row in figures["networks"].items():
        for axis, title in (
            ("batch", "batch size"),
            ("threads", "threads"),
            ("input", "input size"),
        ):
            parts.append(f"\n### Backend only: {title}, {name}\n")
            parts.append(_over_table(axis, row[axis]))
        parts.append(f"\n### Backend only: classes of one image, {name}\n")
        parts.append(_series_table("classes", row["classes"], "1"))
        parts.append(f"\n### End to end from a JPEG: size of the image, {name}\n")
        parts.append(_series_table("image", row["image"], next(iter(row["image"]["ms"]))))
    return "".join(parts)


def _over_table(axis: str, rows: Figures) -> str:
    lines = []
    for label, row in rows.items():
        images = int(label) if axis == "batch" else 1
        lines.append(
            [
                f"{label} (CAM {row['cam']})" if axis == "input" else label,
                markdown.ms(row["ms"]["map"]),
                f"{1e3 * images / row['ms']['map'][0]:.1f}",
                markdown.ratio(row["ratios"]["map"]["ratio"]),
                f"{row['memory_mb']['classification']:.0f}",
                f"{row['memory_mb']['map']:.0f}",
                str(row["rounds"]),
            ]
        )
    head = [
        axis, "with map, ms", "images/s", "over classification", "memory, classification",
        "memory, with map", "rounds",
    ]  # fmt: skip
    return markdown.table(head, lines)


def _series_table(axis: str, row: Figures, base: str) -> str:
    memory = row.get("memory_mb")
    lines = []
    for label, values in row["ms"].items():
        ratio = row["ratios"].get(label, {}).get("ratio")
        limit = CLASSES_LIMIT if (axis, label) == ("classes", "100") else None
        cells = [label, markdown.ms(values), "" if ratio is None else markdown.ratio(ratio, limit)]
        lines.append(cells + ([] if memory is None else [f"{memory[label]:.0f}"]))
    head = [axis, "ms", f"over {base}", *([] if memory is None else ["memory"])]
    return markdown.table(head, lines)


def reached(figures: Figures) -> dict[str, Reached | None]:
    """100 classes over one."""
    row = figures["networks"].get("resnet50")
    found = {} if row is None else row["classes"]["ratios"]
    return {"classes": Reached(found["100"]["ratio"])} if "100" in found else {}


def plots(figures: Figures, folder: Path) -> list[Path]:
    """Batches and threads; classes; memory."""
    networks = figures["networks"]
    rate, memory, classes = {}, {}, {}
    for name, row in networks.items():
        rate[name] = [
            (int(n), [1e3 * int(n) / one["ms"]["map"][i] for i in (0, 2, 1)])
            for n, one in row["batch"].items()
        ]
        for which in ("classification", "map"):
            memory[f"{name}, {which}"] = [
                (int(n), [one["memory_mb"][which]] * 3) for n, one in row["batch"].items()
            ]
        classes[name] = [(int(n), values) for n, values in row["classes"]["ms"].items()]
    return [
        drawing.curves(
            folder / "scaling_batch.png", "Backend only: images per second, with map",
            ("batch", "images/s"), rate, log="x",
        ),
        drawing.curves(
            folder / "scaling_memory.png", "Backend only: peak memory of a process",
            ("batch", "MB"), memory, log="x",
        ),
        drawing.curves(
            folder / "scaling_classes.png", "Backend only: K classes of one image, one pass",
            ("classes", "ms"), classes, log="x",
        ),
    ]  # fmt: skip
