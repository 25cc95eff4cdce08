"""The benchmark: all parts or some, their figures, page and plots.

    python -m benchmarks.run [--part NAME ...] [--quick] [--rounds N] [--network NAME ...]
        [--folder FOLDER] [--out FILE.json] [--page FILE.md]

Writes what it has after every part, so that it can be stopped; figures of parts that
aren't measured anew stay in the file, and so do those of other networks of the same part.
Exported files are kept in FOLDER, under the sources' fingerprint, and used again: the
first full run spends a good part of its time exporting. Times need a quiet machine; the
load is recorded and told on the page.

`--quick` takes a small selection and few rounds, and writes to out/ instead.
`--only-page` writes the page anew from the file.
"""

from __future__ import annotations

import gc
import hashlib
import shlex
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

import sigcam.convert.quantize
import sigcam.export
import sigcam.runtime
import sigcam.train
from benchmarks.harness import results
from benchmarks.harness.context import Context
from benchmarks.harness.machine import load, machine
from benchmarks.harness.measure import Effort
from benchmarks.harness.page import write_page
from benchmarks.parts import PARTS, part

ROOT = Path(__file__).resolve().parents[1]
FULL = Effort(seconds=6.0)
QUICK = Effort(seconds=0.6, most=20)


def fingerprint() -> str:
    """Of the sources that exported files come from."""
    digest = hashlib.sha256()
    for package in (sigcam.runtime, sigcam.train, sigcam.export, sigcam.convert.quantize):
        for file in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def effort_of(quick: bool, rounds: int | None) -> Effort:
    """How long a case may take."""
    chosen = QUICK if quick else FULL
    return Effort(chosen.seconds, chosen.least, chosen.most, rounds)


def run_part(
    name: str, context: Context, command: str, load_before: float | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is told about a part's run, and its figures.

    `load_before` is that before the first part: later ones would count the parts before them.
    """
    about: dict[str, Any] = {
        "machine": machine(),
        "load_before": load_before,
        "effort": vars(context.effort),
        "quick": context.quick,
        "command": command,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
    context.say(f"{name}: {PARTS[name]}")
    start = time.perf_counter()
    figures = part(name).measure(context)
    about["seconds"] = round(time.perf_counter() - start)
    context.say(f"{name}: {about['seconds']} s")
    gc.collect()
    return about, figures


@click.command()
@click.option("--part", "names", multiple=True, type=click.Choice(list(PARTS)))
@click.option("--quick", is_flag=True, help="A small selection, few rounds; written to out/.")
@click.option("--rounds", type=click.IntRange(min=1), help="Of every case, instead of its time.")
@click.option("--network", "networks", multiple=True, help="Instead of the parts' own.")
@click.option("--folder", type=click.Path(path_type=Path), default=ROOT / "out" / "bench-files")
@click.option("--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data")
@click.option("--out", type=click.Path(path_type=Path), help="The file of figures.")
@click.option("--page", "page_path", type=click.Path(path_type=Path), help="The page.")
@click.option("--only-page", is_flag=True, help="Measure nothing.")
def main(
    names: tuple[str, ...],
    quick: bool,
    rounds: int | None,
    networks: tuple[str, ...],
    folder: Path,
    data: Path,
    out: Path | None,
    page_path: Path | None,
    only_page: bool,
) -> None:
    """Measures the parts and writes figures, page and plots."""
    here = ROOT / "out" / "bench-quick" if quick else None
    out = out or (here or ROOT / "benchmarks" / "results") / "benchmarks.json"
    page_path = page_path or (here or ROOT / "docs") / "benchmarks.md"
    if networks and not names:
        raise click.UsageError("--network needs --part: parts have different networks")
    context = Context(
        folder=folder / fingerprint(),
        effort=effort_of(quick, rounds),
        quick=quick,
        data=data,
        say=click.echo,
        networks=networks,
    )
    images = page_path.parent / "benchmarks"
    shown = out.resolve()
    shown = shown.relative_to(ROOT) if shown.is_relative_to(ROOT) else Path(shown.name)
    records, load_before = results.read(out), load()
    click.echo(f"load before the start: {load_before}")
    for name in () if only_page else names or PARTS:
        about, figures = run_part(name, context, _command(name), load_before)
        records = results.with_part(records, name, about, figures)
        results.write(out, records)
        write_page(page_path, shown, records, images)
    if only_page:
        write_page(page_path, shown, records, images)
    click.echo(f"wrote {out} and {page_path}")


def _command(name: str) -> str:
    """The command that measures this part again; folders of this machine are left out."""
    kept, skip = [], False
    for word in sys.argv[1:]:
        if skip or word.split("=")[0] in ("--part", "--folder", "--data", "--out", "--page"):
            skip = not skip and "=" not in word
            continue
        kept.append(word)
    return shlex.join(["python", "-m", "benchmarks.run", "--part", name, *kept])


if __name__ == "__main__":
    main()
