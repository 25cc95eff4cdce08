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
import multiprocessing
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click

from benchmarks.coverage import check as coverage_check
from benchmarks.coverage import report as coverage_report
from benchmarks.coverage.names import NETWORKS

ROOT = Path(__file__).resolve().parents[2]
# One process imports everything and is copied for each network: the imports take as long
# as many a network.
_CONTEXT = multiprocessing.get_context("forkserver")


def _child(name: str, method: str, threads: int, end: Connection) -> None:
    import warnings

    import torch

    warnings.simplefilter("ignore")  # the networks' own
    torch.set_num_threads(threads)
    end.send(coverage_check.check(NETWORKS[name], method).to_dict())


def run_one(name: str, method: str, threads: int, limit: float) -> dict[str, Any]:
    """Exports one network in a process of its own.

    Args:
        name: of `NETWORKS`.
        method: of the artifact.
        threads: for PyTorch and ONNX Runtime.
        limit: seconds until it is ended.
    """
    here, there = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_child, args=(name, method, threads, there))
    process.start()
    there.close()
    result = coverage_check.Outcome(name, method, "failed").to_dict()
    try:
        if here.poll(limit):
            result = here.recv()
        else:
            result |= {"status": "late", "reason": f"not done after {limit:g} s"}
    except EOFError:
        process.join()
        result["reason"] = f"the process ended with code {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return result


def read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The last result of each network, by name and method."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {(result["name"], result["method"]): result for result in map(json.loads, lines)}


def run_all(
    wanted: Iterable[tuple[str, str]], path: Path, jobs: int, threads: int, limit: float
) -> None:
    """Exports networks, `jobs` at a time, and adds each result to the file.

    Args:
        wanted: names and methods.
        path: of the file.
        jobs: how many at a time.
        threads: for each.
        limit: seconds for each.
    """
    # The server's own interpreter must find the module; it isn't told `sys.path` in time.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    _CONTEXT.set_forkserver_preload(["benchmarks.coverage.warm"])
    lock = threading.Lock()

    def one(name: str, method: str) -> None:
        result = run_one(name, method, threads, limit)
        with lock, path.open("a") as file:
            file.write(json.dumps(result) + "\n")
            click.echo(coverage_report.line(result))

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda pair: one(*pair), wanted))


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
@click.option("--jobs", default=2, show_default=True, type=click.IntRange(1))
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
    jobs: int,
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
        run_all(wanted, results, jobs, threads, limit)
    done = read(results)
    coverage_report.write(report, [found for (name, _), found in done.items() if name in NETWORKS])
    click.echo(f"{report} written")


if __name__ == "__main__":
    main()
