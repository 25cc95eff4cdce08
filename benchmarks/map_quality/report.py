"""Makes the tables of docs/results.md from the files that the study wrote.

    python -m benchmarks.map_quality.report out/map-quality [--out tables.md]

A difference is to the classic map (softmax weights, not clamped, negative sums cut off) on the same
images. Its interval is a percentile bootstrap over images and over the seeds of the branch at once:
both are drawn with replacement, 2,000 times.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import click
import numpy as np

from benchmarks.harness.markdown import table
from sigcam.core.files import write_text
from sigcam.core.types import Array
from sigcam.evaluate import pixel_curve

BASE = "softmax"
RESAMPLES = 2000
METRICS: Mapping[str, tuple[str, bool]] = {
    "grid2": ("Grid pointing 2x2 ↑", True),
    "grid3": ("Grid pointing 3x3 ↑", True),
    "average_drop": ("Average Drop ↓", False),
    "increase": ("% Increase ↑", True),
    "insertion": ("Insertion ↑", True),
    "deletion": ("Deletion ↓", False),
    "road": ("ROAD ↑", True),
}
"""Keys of results with their titles, and whether more is better."""

FURTHER: Mapping[str, tuple[str, bool]] = {
    "grid2_best": ("Grid pointing 2x2, best threshold ↑", True),
    "sensitivity": ("Class sensitivity ↑", True),
}


@dataclass(frozen=True)
class Difference:
    """A source's metric beside the classic map's, in percent.

    Attributes:
        value: the source's own value.
        difference: that value minus the classic map's.
        low, high: the 95% interval of the difference.
        higher: whether more is better.
    """

    value: float
    difference: float
    low: float
    high: float
    higher: bool

    @property
    def verdict(self) -> int:
        """Returns 1 where the interval says better, -1 where it says worse, 0 otherwise."""
        if self.low <= 0 <= self.high:
            return 0
        return 1 if (self.difference > 0) == self.higher else -1


def read(folder: Path) -> dict[str, dict[str, Array]]:
    """Reads the results of a task.

    Returns:
        Source to key of a metric to float64 [S, P]: seeds, or one row without any, and images.
    """
    found: dict[str, dict[str, list[Array]]] = {}
    for path in sorted(folder.glob("*.npz")):
        source = re.sub(r" \(\d+\)$", "", path.stem)
        with np.load(path) as stored:
            for key in stored.files:
                values = stored[key]
                if key.startswith("grid"):
                    found.setdefault(source, {}).setdefault(f"{key}_all", []).append(values)
                    values = values[:, 0]
                if len(values):
                    found.setdefault(source, {}).setdefault(key, []).append(values)
    return {
        source: {key: np.stack(rows) for key, rows in columns.items() if _alike(rows)}
        for source, columns in found.items()
    }


def _alike(rows: Sequence[Array]) -> bool:
    return len({row.shape for row in rows}) == 1


def compare(source: Array, base: Array, higher: bool, seed: int = 0) -> Difference:
    """Compares a source with the classic map.

    Args:
        source: float64 [S, P], shares.
        base: float64 [1, P].
        higher: whether more is better.
        seed: what images and seeds are drawn with.
    """
    random = np.random.default_rng(seed)
    each = 100 * (source - base)
    S, P = each.shape
    images = random.multinomial(P, np.full(P, 1 / P), RESAMPLES) / P
    seeds = random.multinomial(S, np.full(S, 1 / S), RESAMPLES) / S
    drawn = np.einsum("rs,sp,rp->r", seeds, each, images)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Difference(100 * float(source.mean()), float(each.mean()), low, high, higher)


def cell(one: Difference) -> str:
    """Writes a value with its difference, which is bold where its interval leaves out zero."""
    mark = {1: "**", 0: "", -1: "_"}[one.verdict]
    return f"{one.value:.1f}; {mark}{one.difference:+.1f}{mark} ({one.low:+.1f} to {one.high:+.1f})"


def task_table(found: Mapping[str, Mapping[str, Array]]) -> str:
    """Lays out all sources of a task."""
    metrics = {**METRICS, **FURTHER}
    base = found[BASE]
    keys = [key for key in metrics if _values(base, key) is not None]
    rows = []
    for source in sorted(found, key=_order):
        cells = []
        for key in keys:
            values, own = _values(found[source], key), _values(base, key)
            if values is None or own is None:
                cells.append("")
            elif source == BASE:
                cells.append(f"{100 * values.mean():.1f}")
            else:
                cells.append(cell(compare(values, own, metrics[key][1])))
        rows.append([source, *cells])
    return table(["", *(metrics[key][0] for key in keys)], rows)


def _values(columns: Mapping[str, Array], key: str) -> Array | None:
    if key != "grid2_best":
        return columns.get(key)
    whole = columns.get("grid2_all")
    # The threshold at which the mean over images and seeds is largest.
    return None if whole is None else whole[:, :, int(whole.mean((0, 1)).argmax())]


_FIRST = ("softmax", "softmax, signed", "softmax, NWC", "centred", "centred, NWC", "sigmoid",
          "sigmoid, NWC")  # fmt: skip


def _order(source: str) -> tuple[int, str]:
    return (_FIRST.index(source) if source in _FIRST else len(_FIRST), source)


def verdicts(
    tasks: Mapping[str, Mapping[str, Mapping[str, Array]]],
) -> dict[str, list[tuple[str, str, Difference]]]:
    """Compares every source with the classic map in every task and metric.

    Returns:
        Source to (task, metric, difference).
    """
    found: dict[str, list[tuple[str, str, Difference]]] = {}
    for task, sources in tasks.items():
        for source, columns in sources.items():
            if source == BASE:
                continue
            for key, (_, higher) in METRICS.items():
                if key in columns and key in sources[BASE]:
                    one = compare(columns[key], sources[BASE][key], higher)
                    found.setdefault(source, []).append((task, key, one))
    return found


def summary_table(tasks: Mapping[str, Mapping[str, Mapping[str, Array]]]) -> str:
    """Counts, for each source, the cells in which it is better and worse than the classic map."""
    rows = []
    for source, cells in sorted(verdicts(tasks).items(), key=lambda pair: _order(pair[0])):
        row = [source, str(len(cells))]
        for keys in (list(METRICS), ["grid2", "grid3"], [k for k in METRICS if "grid" not in k]):
            some = [one for _, key, one in cells if key in keys]
            better, worse = (sum(one.verdict == sign for one in some) for sign in (1, -1))
            row.append(f"{better} / {worse} of {len(some)}")
        rows.append(row)
    head = ["source", "cells", "better / worse", "grid pointing", "faithfulness"]
    return table(head, rows)


def across(tasks: Mapping[str, Mapping[str, Mapping[str, Array]]], key: str) -> str:
    """Lays out one metric: a row for each source, a column for each task."""
    title, higher = {**METRICS, **FURTHER}[key]
    names = [name for name, sources in tasks.items() if _values(sources[BASE], key) is not None]
    rows = []
    for source in sorted({one for name in names for one in tasks[name]}, key=_order):
        cells = []
        for name in names:
            own = _values(tasks[name].get(source, {}), key)
            base = _values(tasks[name][BASE], key)
            if own is None or base is None:
                cells.append("")
            elif source == BASE:
                cells.append(f"{100 * own.mean():.1f}")
            else:
                cells.append(cell(compare(own, base, higher)))
        if any(cells):
            rows.append([source, *cells])
    return table([title, *names], rows)


def tasks_of(results: Path, pattern: str) -> Iterator[tuple[str, dict[str, dict[str, Array]]]]:
    """Yields the tasks whose names match, with their results."""
    for folder in sorted(path.parent for path in results.glob(f"*/*/{BASE}.npz")):
        name = str(folder.relative_to(results))
        if re.fullmatch(pattern, name):
            yield name, read(folder)


def methods_of(results: Path) -> Iterator[tuple[str, dict[str, dict[str, Array]]]]:
    """Yields the maps behind a head with a hidden layer, each method beside its classic map."""
    for folder in sorted(results.glob("*/MLP")):
        found = read(folder)
        for method in sorted({source.partition(", ")[0] for source in found}):
            own = {
                source.removeprefix(f"{method}, "): columns
                for source, columns in found.items()
                if source.startswith(f"{method}, ")
            }
            if BASE in own:
                yield f"{folder.relative_to(results)}, {method}", own


def choices_of(results: Path) -> Iterator[tuple[str, dict[str, dict[str, Array]]]]:
    """Yields the tasks whose training choices were compared, beside the classic map."""
    for folder in sorted(path for path in results.glob("*/*-choices") if path.is_dir()):
        base = read(folder.with_name(folder.name.removesuffix("-choices")))
        kept = {name: base[name] for name in (BASE, "sigmoid, signed") if name in base}
        yield str(folder.relative_to(results)), {**kept, **read(folder)}


def localisation_table(results: Path) -> str:
    """Lays out boxes and masks of pets: MaxBoxAccV2 and PxAP with differences."""
    rows = []
    for folder in sorted(results.glob("*-pets")):
        files: dict[str, list[Path]] = {}
        for path in sorted(folder.glob("*.npz")):
            files.setdefault(re.sub(r" \(\d+\)$", "", path.stem), []).append(path)
        if BASE not in files:
            continue
        base = _location([files[BASE][0]])
        for source in sorted(files, key=_order):
            own = _location(files[source])
            cells = [f"{own[key][0]:.1f}" for key in own]
            if source != BASE:
                cells = [_located(own[key], base[key]) for key in own]
            rows.append([folder.name.removesuffix("-pets"), source, *cells])
    return table(["backbone", "source", "MaxBoxAccV2 ↑", "PxAP ↑"], rows) if rows else ""


def _located(own: Array, base: Array) -> str:
    low, high = np.percentile(own[1:] - base[1:], [2.5, 97.5])
    return cell(Difference(own[0], own[0] - base[0], low, high, higher=True))


def _location(paths: Sequence[Path]) -> dict[str, Array]:
    """Computes both metrics: of the images themselves first, then of drawn images and seeds."""
    stored = [np.load(path) for path in paths]
    hits = np.stack([one["hits"].astype(np.float32) for one in stored])
    pixels = np.stack([one["pixels"].astype(np.float32) for one in stored])
    S, P = hits.shape[:2]
    random = np.random.default_rng(0)
    count = 500
    images = random.multinomial(P, np.full(P, 1 / P), count).astype(np.float32)
    seeds = np.random.default_rng(1).multinomial(S, np.full(S, 1 / S), count).astype(np.float32)
    images = np.concatenate([np.ones((1, P), np.float32), images])
    seeds = np.concatenate([np.full((1, S), 1, np.float32), seeds]) / S
    boxes, area = [], []
    for image, seed in zip(images, seeds, strict=True):
        each = np.einsum("s,p,spit->sit", seed, image, hits, optimize=True) / P
        # The best threshold is each branch's own.
        boxes.append(100 * sum(part.max(-1).mean() for part in each))
        area.append(sum(
            weight * pixel_curve(np.einsum("p,pct->ct", image, one, optimize=True)).pxap
            for weight, one in zip(seed, pixels, strict=True) if weight
        ))  # fmt: skip
    return {"boxes": np.array(boxes), "pxap": np.array(area)}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File for the tables (Markdown).")
def main(folder: Path, out: Path | None) -> None:
    """Prints the tables of whatever the study has done."""
    results = folder / "results"
    many = dict(tasks_of(results, r".*/(30|100)"))
    parts = ["## Better and worse than the classic map\n", summary_table(many)]
    parts += [f"\n## {key}\n{across(many, key)}" for key in (*METRICS, *FURTHER)]
    few = dict(tasks_of(results, r".*/(3|10)"))
    for key in ("grid2", "average_drop", "increase"):
        parts.append(f"\n## {key}, few classes\n{across(few, key)}")
    alone = tasks_of(results, r".*/[A-Z].*"), methods_of(results), choices_of(results)
    for name, found in chain.from_iterable(alone):
        parts.append(f"\n## {name}\n{task_table(found)}")
    parts.append(f"\n## Boxes and masks\n{localisation_table(results)}")
    text = "".join(parts)
    click.echo(text)
    if out is not None:
        write_text(out, text)


if __name__ == "__main__":
    main()
