"""Which networks sigcam can explain: whole artifacts, exported and compared with autograd.

    python -m benchmarks.coverage.run [--only NAME ...] [--method METHOD ...] [--jobs N]
        [--limit SECONDS] [--redo STATUS]

Goes through `names.NETWORKS` with each method, each in a process of its own with a time limit, so
that no network's crash or memory ends the run. A result is a line of JSON in the file
`--results`; what is there already isn't run again unless `--only` or `--redo` says so.
`docs/coverage.md` is written from all lines at the end; with `--limit 0` nothing is run.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from benchmarks.coverage import check as coverage_check
from benchmarks.coverage import jobs
from benchmarks.coverage import report as coverage_report
from benchmarks.coverage.names import NETWORKS

ROOT = jobs.ROOT


def check_by_name(name: str, method: str) -> jobs.Result:
    """Exports a network of `NETWORKS` with a method; returns what became of it."""
    return coverage_check.check(NETWORKS[name], method).to_dict()


def read(path: Path) -> dict[tuple[str, str], jobs.Result]:
    """Returns the last result of each network, by name and method."""
    return {(result["name"], result["method"]): result for result in jobs.read(path)}


def run_all(
    wanted: Iterable[tuple[str, str]], path: Path, workers: int, threads: int, limit: float
) -> None:
    """Exports networks, each in a process of its own, and adds each result to the file.

    Args:
        wanted: names and methods.
        path: of the file.
        workers: how many at a time.
        threads: for each.
        limit: seconds for each.
    """
    jobs.prepare()
    lock = threading.Lock()

    def one(pair: tuple[str, str]) -> None:
        known = coverage_check.Outcome(*pair).to_dict()
        result = jobs.run(check_by_name, pair, known, limit, threads)
        with lock, path.open("a") as file:
            file.write(json.dumps(result) + "\n")
            click.echo(coverage_report.line(result))

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, wanted))


@click.command()
@click.option("--only", multiple=True, help="Names to run, done or not; repeatable.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    default=coverage_check.METHODS,
    show_default=True,
    type=click.Choice(coverage_check.METHODS),
    help="Method of the artifacts; repeatable.",
)
@click.option("--redo", multiple=True, help="Run those with this status again; repeatable.")
@click.option("--jobs", "workers", default=2, show_default=True, type=click.IntRange(1))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="For each.")
@click.option("--limit", default=600.0, show_default=True, help="Seconds for one; 0 runs none.")
@click.option(
    "--results",
    default=ROOT / "benchmarks" / "results" / "coverage.jsonl",
    type=click.Path(dir_okay=False, path_type=Path),
)
@click.option(
    "--report",
    default=ROOT / "docs" / "coverage.md",
    type=click.Path(dir_okay=False, path_type=Path),
)
def main(
    only: tuple[str, ...],
    methods: tuple[str, ...],
    redo: tuple[str, ...],
    workers: int,
    threads: int,
    limit: float,
    results: Path,
    report: Path,
) -> None:
    """Which networks sigcam can explain."""
    unknown = sorted(set(only) - NETWORKS.keys())
    if unknown:
        raise click.BadParameter(f"not in names.py: {', '.join(unknown)}")
    done = read(results)
    pairs = [(name, method) for method in methods for name in only or NETWORKS]
    wanted = [p for p in pairs if only or p not in done or done[p]["status"] in redo]
    if limit > 0:
        run_all(wanted, results, workers, threads, limit)
    done = read(results)
    coverage_report.write(report, [found for (name, _), found in done.items() if name in NETWORKS])
    click.echo(f"{report} written")


if __name__ == "__main__":
    main()
