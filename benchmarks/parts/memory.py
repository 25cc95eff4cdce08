"""`sigcam explain` on folders in a process of its own: its peak memory and rate."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import markdown
from benchmarks.harness import plots as drawing
from benchmarks.harness.backends import THREADS
from benchmarks.harness.context import Context
from benchmarks.harness.peak import explain_folder
from benchmarks.harness.targets import TARGETS, Reached

Figures = dict[str, Any]

NETWORKS = ("resnet50",)
QUICK = ("resnet18",)
COUNTS, QUICK_COUNTS = (100, 1000), (10, 40)
WAYS = ("results only", "maps written")
LIMIT, FLAT, BUSY = (TARGETS[name].limit for name in ("memory", "memory_flat", "backend_busy"))

TEXT = f"""
`sigcam explain MODEL FOLDER --verbose` on photographs of many sizes, method cam, ONNX Runtime fp32,
{THREADS} threads, batches of 4 as by default: each row is one fresh process, started once.
"maps written" is with `--out`, one PNG overlay for each image. The peak is the process's largest
resident size; the share is what `--verbose` tells. Targets: at most {LIMIT:g} MB, at most {FLAT:g}
times that of the smaller folder, and a backend that runs at least {BUSY:.0%} of the time.
"""


def measure(context: Context) -> Figures:
    """Peak, rate and share by network, way and number of images."""
    folder = context.data / "imagenet_samples" / "images"
    if not folder.is_dir():
        return {"unavailable": "needs the real images (--data)", "networks": {}}
    found: Figures = {}
    for name in context.chosen(NETWORKS, QUICK):
        path = context.network(name).artifact("cam")
        found[name] = {way: {} for way in WAYS}
        for count in context.some(COUNTS, QUICK_COUNTS):
            for way in WAYS:
                with tempfile.TemporaryDirectory() as work:
                    images = linked(folder, count, Path(work) / "images")
                    out = Path(work) / "heatmaps" if way == "maps written" else None
                    row = explain_folder(path, images, out, threads=THREADS)
                found[name][way][str(count)] = row
                context.say(f"  {name} {count} {way}: {row}")
    return {"networks": found}


def linked(folder: Path, count: int, target: Path) -> Path:
    """A folder with links to this many of the images, over again where there are fewer."""
    files = sorted(folder.iterdir())
    target.mkdir()
    for index in range(count):
        file = files[index % len(files)]
        (target / f"{index:05}{file.suffix}").symlink_to(file.resolve())
    return target


def section(figures: Figures) -> str:
    """One row for each way and number."""
    title = "\n### End to end from JPEG files: `sigcam explain` on a folder\n"
    if "unavailable" in figures:
        return f"{title}\nNot measured: {figures['unavailable']}.\n"
    rows = [
        [
            name, way, count, f"{row['peak_mb']:.0f}", f"{row['per_second']:.1f}",
            f"{row['backend_busy']:.0%}",
        ]
        for name, ways in figures["networks"].items()
        for way, counts in ways.items()
        for count, row in counts.items()
    ]  # fmt: skip
    head = ["network", "what", "images", "peak, MB", "images/s", "backend busy"]
    return title + TEXT + markdown.table(head, rows)


def reached(figures: Figures) -> dict[str, Reached | None]:
    """The worse of both ways."""
    ways = figures["networks"].get("resnet50", {})
    small, large = (str(count) for count in COUNTS)
    if not all(large in ways.get(way, {}) and small in ways[way] for way in WAYS):
        return {}
    peaks = {way: ways[way][large]["peak_mb"] for way in WAYS}
    flat = {way: peaks[way] / ways[way][small]["peak_mb"] for way in WAYS}
    busy = {way: ways[way][large]["backend_busy"] for way in WAYS}

    def told(values: dict[str, float], digits: str) -> str:
        return ", ".join(f"{way} {value:{digits}}" for way, value in values.items())

    return {
        "memory": Reached([max(peaks.values())], told(peaks, ".0f")),
        "memory_flat": Reached([max(flat.values())], told(flat, ".3f")),
        "backend_busy": Reached([min(busy.values())], told(busy, ".2f")),
    }


def plots(figures: Figures, folder: Path) -> list[Path]:
    """Peaks by number of images."""
    found = figures["networks"]
    if not found:
        return []
    cases = [(f"{name}\n{way}", counts) for name, ways in found.items()
             for way, counts in ways.items()]  # fmt: skip
    numbers = list(dict.fromkeys(count for _, counts in cases for count in counts))
    series = {
        f"{count} images": [
            [counts[count]["peak_mb"]] * 3 if count in counts else None for _, counts in cases
        ]
        for count in numbers
    }
    title = "End to end from JPEG files: peak memory of `sigcam explain`"
    lines = {"target": LIMIT}
    names = [name for name, _ in cases]
    return [drawing.bars(folder / "memory.png", title, "MB", names, series, lines)]
