"""Load on `sigcam serve`: every figure of its table, and the part of docs/serving.md.

    python -m benchmarks.serving [PART ...] [--seconds N] [--rounds N] [--soak SECONDS]
        [--clients N] [--batch N] [--options TEXT] [--model FILE] [--environments FOLDER]
        [--out FILE.json] [--page FILE.md] [--only-page]

PARTS are throughput, latency, peers, soak and kill; all when none is named. Clients and server
run on this machine, over loopback. The other servers get environments of their own in FOLDER, made
when they are missing. Times need a quiet machine; the load before the start is recorded, and told
on the page. `--seconds 20 --rounds 1 --soak 60` tries everything in minutes; the figures of the
page are those of `python -m benchmarks.serving`, which takes some 55 minutes.
"""

from __future__ import annotations

import shlex
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from benchmarks.harness import results
from benchmarks.harness.machine import load, machine
from benchmarks.harness.networks import Network, jpeg, random_image
from benchmarks.serving import measure
from benchmarks.serving.measure import Plan
from benchmarks.serving.report import write_part
from benchmarks.serving.servers import ROOT, SERVERS
from sigcam.core.files import write_text

PARTS = ("throughput", "latency", "peers", "soak", "kill")
HEIGHT, WIDTH = 480, 640


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--seconds", default=30.0, show_default=True, help="Of each run.")
@click.option("--rounds", default=5, show_default=True, help="Of what is compared in turn.")
@click.option("--soak", default=1800.0, show_default=True, help="Seconds of the long run.")
@click.option("--clients", default=16, show_default=True, help="Requests kept under way.")
@click.option("--batch", default=8, show_default=True, help="Most images in one run of the others.")
@click.option("--options", default="", help="Further options of `sigcam serve`, in one text.")
@click.option("--model", type=click.Path(path_type=Path), help="Artifact; EfficientNet-Lite0's.")
@click.option(
    "--environments", type=click.Path(path_type=Path), default=ROOT / ".venv-serving",
    help="Folder of the other servers' environments.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), default=ROOT / "benchmarks/results/serving.json",
    help="The file of figures.",
)  # fmt: skip
@click.option(
    "--page", type=click.Path(path_type=Path), default=ROOT / "docs/serving.md",
    help="The page that gets them.",
)  # fmt: skip
@click.option("--only-page", is_flag=True, help="Write the page anew from the file.")
def main(
    parts: tuple[str, ...], seconds: float, rounds: int, soak: float, clients: int, batch: int,
    options: str, model: Path | None, environments: Path, out: Path, page: Path, only_page: bool,
) -> None:  # fmt: skip
    """Measures PARTS, all by default, and writes figures and page after each."""
    records = results.read(out)
    write_part(page.read_text(encoding="utf-8"), records, page_name(out))  # it has the marks
    if not only_page:
        path = model or Network("efficientnet_lite0", ROOT / "out" / "serving").artifact("cam")
        images = [jpeg(random_image(HEIGHT, WIDTH, seed)) for seed in range(16)]
        plan = Plan(
            path,
            images,
            environments.absolute(),
            batch,
            clients,
            seconds,
            rounds,
            soak,
            shlex.split(options),
            say,
        )
        about = {
            "machine": machine(), "load_before": load(), "quick": seconds < 30 or soak < 1800,
            "effort": {"seconds": seconds, "rounds": rounds, "soak": soak, "clients": clients,
                       "batch": batch, "options": options},
            "command": shlex.join(["python", "-m", "benchmarks.serving", *sys.argv[1:]]),
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        }  # fmt: skip
        for part in parts or PARTS:
            begin = time.monotonic()
            say(f"{part}:")
            figures = run(part, plan, records)
            about["seconds"] = round(time.monotonic() - begin)
            records = {**records, part: {"about": dict(about), "figures": figures}}
            results.write(out, records)
    text = write_part(page.read_text(encoding="utf-8"), records, page_name(out))
    write_text(page, text)


def run(part: str, plan: Plan, records: dict[str, Any]) -> dict[str, Any]:
    """Measures a part; those after the first take the capacity from it."""
    if part == "throughput":
        return measure.throughput(plan)
    if part == "peers":
        return measure.peers(plan, list(SERVERS))
    if "throughput" not in records:
        raise click.UsageError(f"{part} needs the capacity: measure throughput first")
    known = records["throughput"]["figures"]
    capacity = measure.median(known["rates"]["sigcam"])
    if part == "latency":
        return measure.latency(plan, capacity, measure.median(known["bare_single_seconds"]))
    return measure.soak(plan, capacity) if part == "soak" else measure.kill(plan, capacity)


def page_name(out: Path) -> str:
    """Returns the file of figures as the page names it."""
    try:
        return out.absolute().relative_to(ROOT).as_posix()
    except ValueError:
        return out.name


def say(text: str) -> None:
    """Tells how far it is."""
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
