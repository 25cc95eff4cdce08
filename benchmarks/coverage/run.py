"""Which networks sigcam can explain: gradient maps in ONNX Runtime against autograd.

    python -m benchmarks.coverage.run [--only NAME ...] [--jobs N] [--limit SECONDS] [--redo WHICH]

Goes through `coverage_names.NAMES`, each in a process of its own with a time limit, so
that no network's crash or memory ends the run. A result is a line of JSON in the file
`--results`; what is there already isn't run again unless `--only` or `--redo` says so.
`docs/coverage.md` is written from all lines at the end.
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
from benchmarks.coverage import names as coverage_names
from benchmarks.coverage import report as coverage_report

ROOT = Path(__file__).resolve().parents[2]
# One process imports everything and is copied for each network: the imports take as long
# as many a network.
_CONTEXT = multiprocessing.get_context("forkserver")


def _child(entry: str, threads: int, backbone: bool, end: Connection) -> None:
    import warnings

    import torch

    warnings.simplefilter("ignore")  # the networks' own
    torch.set_num_threads(threads)
    name, _, size = entry.partition("@")
    found = coverage_check.check(name, int(size) if size else None, backbone=backbone)
    end.send(found.to_dict())


def run_one(entry: str, threads: int, limit: float, backbone: bool) -> dict[str, Any]:
    """Checks one network in a process of its own.

    Args:
        entry: as in `coverage_names`.
        threads: for PyTorch and ONNX Runtime.
        limit: seconds until it is ended.
        backbone: see `coverage_check.check`.
    """
    here, there = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_child, args=(entry, threads, backbone, there))
    process.start()
    there.close()
    found = coverage_check.Outcome(entry.partition("@")[0], "failed", backbone=backbone)
    result = found.to_dict()
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


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The last result of each network, by name."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {result["name"]: result for result in map(json.loads, lines)}


def run_all(entries: Iterable[str], path: Path, jobs: int, limit: float, backbone: bool) -> None:
    """Checks networks, `jobs` at a time, and adds each result to the file."""
    # The server's own interpreter must find the module; it isn't told `sys.path` in time.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    _CONTEXT.set_forkserver_preload(["benchmarks.coverage.warm"])
    threads = max(1, (os.cpu_count() or 1) // jobs)
    lock = threading.Lock()

    def one(entry: str) -> None:
        result = run_one(entry, threads, limit, backbone)
        with lock, path.open("a") as file:
            file.write(json.dumps(result) + "\n")
            click.echo(coverage_report.line(result))

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, entries))


def _again(result: dict[str, Any], redo: tuple[str, ...]) -> bool:
    return result["status"] in redo or ("no-backbone" in redo and not result["backbone"])


@click.command()
@click.option("--only", multiple=True, help="Names to run, done or not; repeatable.")
@click.option(
    "--redo",
    multiple=True,
    help="Run those with this status again, or no-backbone: those that ran without it; repeatable.",
)
@click.option("--jobs", default=2, show_default=True, type=click.IntRange(1))
@click.option("--limit", default=600.0, show_default=True, help="Seconds for one network.")
@click.option(
    "--backbone/--no-backbone",
    default=True,
    show_default=True,
    help="Whether the part before the target layer goes through ONNX too; it takes most of the "
    "time.",
)
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
    redo: tuple[str, ...],
    jobs: int,
    limit: float,
    backbone: bool,
    results: Path,
    report: Path,
) -> None:
    """Which networks sigcam can explain."""
    entries = {entry.partition("@")[0]: entry for entry in coverage_names.NAMES}
    unknown = sorted(set(only) - entries.keys())
    if unknown:
        raise click.BadParameter(f"not in coverage_names: {', '.join(unknown)}")
    done = read(results)
    wanted = only or [n for n in entries if n not in done or _again(done[n], redo)]
    run_all([entries[name] for name in wanted], results, jobs, limit, backbone)
    done = read(results)
    missing = [name for name in entries if name not in done]
    coverage_report.write(report, [done[name] for name in entries if name in done], missing)
    click.echo(f"{report} written")


if __name__ == "__main__":
    main()
