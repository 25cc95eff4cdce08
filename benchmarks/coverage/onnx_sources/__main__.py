"""Which ONNX files sigcam reads: made on the spot, exported, compared with where they come from.

    python -m benchmarks.coverage.onnx_sources [--folder DIR] [--python MODULE=PYTHON ...]
        [--only NAME ...] [--redo STATUS ...] [--jobs N] [--limit SECONDS] [--results FILE]
        [--report FILE]

Files of other frameworks are made by the Python of an environment of their own, which `--python`
names by the module of makers (`entries.OTHERS` says what to install there):

    python -m venv /tmp/tf && /tmp/tf/bin/pip install tensorflow-cpu tf2onnx
    python -m benchmarks.coverage.onnx_sources --python keras_files=/tmp/tf/bin/python

Files that are in the folder aren't made again, and those with a result aren't run again unless
`--only` or `--redo` says so; a file whose environment isn't named is left out. Each is run in a
process of its own with a time limit. docs/coverage.md is written at the end; with `--limit 0`
nothing is made or run.
"""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from benchmarks.coverage import jobs
from benchmarks.coverage.onnx_sources import report as table
from benchmarks.coverage.onnx_sources.check import check
from benchmarks.coverage.onnx_sources.entries import OTHERS, Entry, entries
from benchmarks.coverage.onnx_sources.make import make

RESULTS = jobs.ROOT / "benchmarks" / "results" / "onnx_sources.jsonl"


def _pythons(_ctx: object, _option: object, given: tuple[str, ...]) -> dict[str, str]:
    found = dict(one.partition("=")[::2] for one in given)
    if unknown := sorted(set(found) - OTHERS.keys()):
        raise click.BadParameter(f"{', '.join(unknown)}: not one of {', '.join(OTHERS)}")
    return found


def read(path: Path) -> dict[str, jobs.Result]:
    """Returns the last result of each file, by name."""
    return {result["name"]: result for result in jobs.read(path)}


@click.command()
@click.option("--folder", default="/tmp/onnx-sources", type=click.Path(path_type=Path))
@click.option("--python", "pythons", multiple=True, callback=_pythons, help="MODULE=PYTHON.")
@click.option("--only", multiple=True, help="Names to run, done or not; repeatable.")
@click.option("--redo", multiple=True, help="Run those with this status again; repeatable.")
@click.option("--jobs", "workers", default=2, show_default=True, type=click.IntRange(1))
@click.option("--limit", default=900.0, show_default=True, help="Seconds for one; 0 runs none.")
@click.option("--results", default=RESULTS, type=click.Path(path_type=Path))
@click.option("--report", default=jobs.ROOT / "docs" / "coverage.md",
              type=click.Path(path_type=Path))  # fmt: skip
def main(
    folder: Path,
    pythons: dict[str, str],
    only: tuple[str, ...],
    redo: tuple[str, ...],
    workers: int,
    limit: float,
    results: Path,
    report: Path,
) -> None:
    """Which ONNX files sigcam reads."""
    known = {entry.name: entry for entry in entries()}
    if unknown := sorted(set(only) - known.keys()):
        raise click.BadParameter(f"no such files: {', '.join(unknown)}")
    jobs.prepare()
    done = read(results)
    lock = threading.Lock()

    def one(entry: Entry) -> None:
        reason = make(entry, folder / entry.name, pythons, limit)
        if reason is not None:
            click.echo(f"{entry.name}: not made: {reason}")
            return
        known = {"name": entry.name}
        result = jobs.run(check, (entry.name, folder / entry.name), known, limit)
        with lock, results.open("a") as file:
            file.write(json.dumps(result) + "\n")
            click.echo(table.line(result))

    wanted = [
        entry
        for name, entry in known.items()
        if name in only or (not only and (name not in done or done[name]["status"] in redo))
    ]
    if limit > 0:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, wanted))
    done = read(results)
    table.write(report, [done[name] for name in known if name in done],
                [name for name in known if name not in done])  # fmt: skip
    click.echo(f"{report} written")


if __name__ == "__main__":
    main()
