"""The file of figures: one record for each part, so that a part can be run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sigcam.core.files import write_text

Figures = dict[str, Any]


def read(path: Path) -> Figures:
    """The records by part; empty where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(path: Path, records: Figures) -> None:
    """Writes the records, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(records, indent=1) + "\n")


def with_part(records: Figures, name: str, about: Figures, figures: Figures) -> Figures:
    """The records with a part's new figures.

    Figures that weren't measured anew stay, if they are of the same machine with the same
    versions and the same effort; the load that is told is then the larger one. Otherwise
    the part's old figures go: a table never mixes machines.
    """
    old = records.get(name)
    if old is not None and _comparable(old["about"]) == _comparable(about):
        figures = merged(old["figures"], figures)
        loads = [a["load_before"] for a in (old["about"], about) if a["load_before"] is not None]
        about = {**about, "load_before": max(loads, default=None)}
        about["seconds"] = round(about["seconds"] + old["about"]["seconds"])
    return {**records, name: {"about": about, "figures": figures}}


def merged(old: Figures, new: Figures) -> Figures:
    """`new` over `old`, level by level."""
    both = dict(old)
    for key, value in new.items():
        nested = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if nested else value
    return both


def _comparable(about: Figures) -> Figures:
    return {key: about[key] for key in ("machine", "effort", "quick")}
