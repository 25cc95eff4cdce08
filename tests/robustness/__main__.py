"""Runs the campaign: `make fuzz`, or `python -m tests.robustness`."""

from __future__ import annotations

import datetime as dt
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

from tests.robustness import results
from tests.robustness.results import Record
from tests.robustness.targets import COUNTS, TARGETS, corpus_name
from tests.robustness.watch import Result, run_item, run_items

_THREADS = "threads"
_PARTS = [*TARGETS, _THREADS]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("parts", nargs=-1, type=click.Choice(_PARTS))
@click.option("--seed", default=1, show_default=True, help="What all damage follows from.")
@click.option(
    "--count",
    type=click.IntRange(min=1),
    help="Items of each part.  [default: 10000 images, 2000 artifacts, 20000 requests, 200 kills "
    "and disks, 1000 of the others; for threads the calls of each, 2000]",
)
@click.option("--item", type=int, help="Only this item of one part, in this process.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Keeps the whole files here, for the next run.  [default: a temporary folder]",
)
@click.option("--record", is_flag=True, help="Write the counts and docs/reliability.md.")
def main(
    parts: tuple[str, ...],
    seed: int,
    count: int | None,
    item: int | None,
    workers: int,
    folder: Path | None,
    record: bool,
) -> None:
    """Damages files, kills commands, fills disks; PARTS are all parts by default.

    Every fault is printed with the command that shows it again. The exit code is 1 if there is
    any.
    """
    # Killed workers leave semaphores, which multiprocessing's own process removes and tells of.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    with tempfile.TemporaryDirectory(prefix="sigcam-robustness-") as temporary:
        place = (folder or Path(temporary)).absolute()
        if item is not None:
            if len(parts) != 1 or parts[0] == _THREADS:
                raise click.UsageError("--item goes with one part that has items; name it")
            _show(run_item(parts[0], seed, item, place / corpus_name(parts[0])))
            return
        made = [_run(part, seed, count, workers, place) for part in parts or _PARTS]
    if record:
        results.write_records(made)
        text = results.table(results.read_records())
        results.PAGE.write_text(results.page_with(results.PAGE.read_text(), text))
    sys.exit(any(one.faults for one in made))


def _run(part: str, seed: int, count: int | None, workers: int, place: Path) -> Record:
    begun = time.monotonic()
    if part == _THREADS:
        made = _run_threads(count or 2_000, place / part)
    else:
        number = count or COUNTS.get(part, 1_000)
        found = run_items(part, seed, range(number), place / corpus_name(part), workers)
        made = results.record_of(part, seed, _told(part, seed, number, found))
    made.seconds = round(time.monotonic() - begun, 1)
    made.slowest = round(made.slowest, 2)
    made.date = f"{dt.datetime.now(dt.timezone.utc):%Y-%m-%d}"
    counts = ", ".join(f"{number} {outcome}" for outcome, number in made.outcomes.items())
    more = f"; {made.more}" if made.more else ""
    click.echo(f"{part}: {counts}; slowest {made.slowest} s; {made.seconds:.0f} s in all{more}")
    return made


def _told(part: str, seed: int, count: int, found: Iterator[Result]) -> Iterator[Result]:
    """Passes results on; prints the faults, and how far it is for a person who waits."""
    for number, result in enumerate(found, 1):
        if not result.good:
            _show(result)
            click.echo(f"  python -m tests.robustness {part} --seed {seed} --item {result.item}")
        elif sys.stderr.isatty() and number % 10 == 0:
            click.echo(f"\r{part}: {number} of {count}\r", err=True, nl=False)
        yield result


def _show(result: Result) -> None:
    click.echo(f"item {result.item}: {result.outcome}, {result.seconds:.2f} s")
    click.echo(f"  {result.done}")
    if result.text:
        click.echo(f"  {result.text}")


def _run_threads(calls: int, place: Path) -> Record:
    from tests.robustness.threads import THREADS, run_threads

    outcomes = {"works": 0, "differs": 0}
    faults, told = [], []
    for backend in ("ort", "openvino"):
        folder = place / backend
        folder.mkdir(parents=True, exist_ok=True)
        one = run_threads(folder, calls, backend)
        outcomes["works"] += THREADS * calls - one.different
        outcomes["differs"] += one.different
        told.append(f"{backend}: {one.slope:.0f} bytes a call, error {one.error:.0f}")
        if not one.good:
            faults.append({"item": 0, "outcome": "differs", "done": backend, "text": repr(one)})
            click.echo(f"  {one!r}")
    kept = {outcome: number for outcome, number in outcomes.items() if number}
    return Record(_THREADS, 0, calls, kept, faults, more="memory " + "; ".join(told))


if __name__ == "__main__":
    main()
