"""The page docs/benchmarks.md and its plots, from the file of figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import targets
from benchmarks.harness.machine import busy
from benchmarks.harness.targets import TARGETS, Reached
from benchmarks.parts import PARTS, part
from sigcam.core.files import write_text

Figures = dict[str, Any]

HEAD = """# Benchmarks

Written by `python -m benchmarks.run`; the figures are in `{results}`. Each part's own command
stands below its title.

How times are taken: the calls that are compared alternate in one process, in an order drawn anew
for each round; a ratio is the median over the rounds of the ratio within each round, and the
brackets hold its 95% interval from order statistics. Titles say the scope: **backend only** is the
graph on a prepared input; **end to end** starts from an image, as the title says. Outputs are
compared before anything is timed. Fresh weights unless a part says otherwise.
"""

TARGETS_TEXT = """
## Targets

Every target with the figure reached, its interval, and which of several cases it is. A figure
is judged by its median. Times are compared as ratios within one run, on two threads.
"""


def write_page(path: Path, results: Path, records: Figures, images: Path) -> None:
    """Writes the page and the plots; parts that weren't measured are named at the end.

    Args:
        path: of the page.
        results: the file that the figures are in, as the page names it.
        records: by part, as `results.with_part` makes them.
        images: folder of the plots, at or below the page's.
    """
    chunks = [HEAD.format(results=results.as_posix())]
    machines = [record["about"]["machine"] for record in records.values()]
    shared = machines[0] if machines and all(m == machines[0] for m in machines) else None
    if shared is not None:
        chunks.append(f"\nMachine: {machine_text(shared)}.\n")
    chunks.append(targets_text(records))
    for name in PARTS:
        if name not in records:
            continue
        found = part(name)
        chunks.append(f"\n## {name}: {PARTS[name]}\n")
        chunks.append(about_text(name, records[name]["about"], shared is None))
        chunks.append(found.section(records[name]["figures"]))
        drawn = found.plots(records[name]["figures"], images)
        chunks += [_image(file, path) for file in drawn]
    chunks.append(_missing([name for name in PARTS if name not in records]))
    write_text(path, "".join(chunks))


def targets_text(records: Figures) -> str:
    """The table of all targets, those without a figure too; a quick run reaches none."""
    found: dict[str, Reached | None] = {}
    doubts = {}
    for name, record in records.items():
        about = record["about"]
        if about["quick"]:
            continue
        found.update(part(name).reached(record["figures"]))
        if busy(about["load_before"], about["machine"]["cores"]):
            doubts[name] = ", busy machine"
    return TARGETS_TEXT + targets.table(found, doubts, TARGETS)


def about_text(name: str, about: Figures, with_machine: bool) -> str:
    """When, by which command, and how busy the machine was."""
    lines = [f"\n`{about['command']}`, {about['date']}, {about['seconds']:.0f} s"]
    load = about["load_before"]
    if load is not None:
        lines.append(f"; load before the start {load:.1f}")
    lines.append(".\n")
    if busy(load, about["machine"]["cores"]):
        lines.append(
            "\n**The machine was busy with other work: these figures show the form, not the "
            f"speed.** Measure `{name}` again on a quiet one.\n"
        )
    if about["quick"]:
        lines.append("\nA quick run: few cases, few rounds.\n")
    if with_machine:
        lines.append(f"\nMachine: {machine_text(about['machine'])}.\n")
    return "".join(lines)


def machine_text(machine: Figures) -> str:
    """One sentence's worth."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{machine['processor']} ({', '.join(machine['flags']) or 'flags unknown'}), "
        f"{machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}; "
        f"Python {machine['python']}, {packages}"
    )


def _image(file: Path, page: Path) -> str:
    where = file.resolve().relative_to(page.resolve().parent).as_posix()
    return f"\n![{file.stem}]({where})\n"


def _missing(names: Sequence[str]) -> str:
    return f"\nNot measured: {', '.join(names)}.\n" if names else ""
