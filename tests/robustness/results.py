"""What the campaign counted, in a file, and the table of docs/reliability.md that is made of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.robustness.watch import GOOD, Result
from tests.support.paths import BENCHMARKS, ROOT

FILE = BENCHMARKS / "results" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- written by `make fuzz RECORD=1` -->", "<!-- to here -->"

WHAT = {
    "images": "damaged images of every format, explained",
    "artifacts": "damaged artifacts: graph, external weights, head graph, int8",
    "specs": "artifacts whose spec has wrong fields",
    "sidecars": "damaged engines' sidecars",
    "branches": "damaged branch files",
    "checkpoints": "damaged files of weights and training checkpoints",
    "onnx": "classifiers' own ONNX files, damaged, read and inspected",
    "datasets": "damaged CSV, VOC XML, COCO JSON and text metadata",
    "requests": "damaged requests to `sigcam serve`: fields, bodies, lengths, paths, headers",
    "kills": "commands that got SIGKILL, and were run again",
    "disks": "commands on full, small and read-only disks",
    "threads": "calls of eight threads, images of 50 sizes",
}
"""What each part is, for the table."""


@dataclass
class Record:
    """What one part of the campaign counted.

    Attributes:
        part: its name.
        seed, count: what it was asked for.
        outcomes: how many items ended how.
        faults: those that must not be, as `Result`'s fields.
        slowest: seconds of the slowest item.
        seconds: that all took.
        date: of the run.
        more: further figures, in words.
    """

    part: str
    seed: int
    count: int
    outcomes: dict[str, int]
    faults: list[dict[str, Any]] = field(default_factory=list)
    slowest: float = 0.0
    seconds: float = 0.0
    date: str = ""
    more: str = ""

    @property
    def command(self) -> str:
        """The command that counts the same again."""
        return f"make fuzz ONLY={self.part} SEED={self.seed} COUNT={self.count}"


def record_of(part: str, seed: int, results: Iterable[Result]) -> Record:
    """Counts results."""
    found = sorted(results, key=lambda result: result.item)
    return Record(
        part, seed, len(found),
        outcomes=dict(sorted(Counter(result.outcome for result in found).items())),
        faults=[asdict(result) for result in found if not result.good],
        slowest=max((result.seconds for result in found), default=0.0),
    )  # fmt: skip


def write_records(records: Iterable[Record], file: Path = FILE) -> None:
    """Writes records down; parts that aren't among them stay as they were."""
    known = {**read_records(file), **{record.part: record for record in records}}
    rows = {part: asdict(known[part]) for part in WHAT if part in known}
    file.write_text(json.dumps(rows, indent=1) + "\n")


def read_records(file: Path = FILE) -> dict[str, Record]:
    """Reads what was written down, by part."""
    if not file.is_file():
        return {}
    return {part: Record(**values) for part, values in json.loads(file.read_text()).items()}


def table(records: Mapping[str, Record]) -> str:
    """Returns the table in Markdown."""
    lines = [
        "| what | tries | worked | refused with a sentence | faults | slowest | command |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for part, what in WHAT.items():
        if part not in records:
            continue
        one = records[part]
        worked, refused = (one.outcomes.get(name, 0) for name in GOOD)
        bad = {name: n for name, n in one.outcomes.items() if name not in GOOD}
        faults = ", ".join(f"{n} {name}" for name, n in bad.items()) or "none"
        slowest = f"{one.slowest:.1f} s" if one.slowest else ""
        more = f" ({one.more})" if one.more else ""
        lines.append(
            f"| {what}{more} | {sum(one.outcomes.values()):,} | {worked:,} | {refused:,} | "
            f"{faults} | {slowest} | `{one.command}` |"
        )
    dates = sorted({one.date for one in records.values()})
    return "\n".join([*lines, "", f"Counted on {' and '.join(dates)}."])


def page_with(text: str, made: str) -> str:
    """Puts the table in its place on the page."""
    begin, rest = text.split(_BEGIN)
    _, end = rest.split(_END)
    return f"{begin}{_BEGIN}\n\n{made}\n\n{_END}{end}"
