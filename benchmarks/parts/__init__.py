"""The parts of the benchmark, in the order of the page.

Each is a module with `measure(context)` that returns figures as plain JSON values,
`section(figures)` that returns their Markdown, `plots(figures, folder)` that writes PNG
files named after the part and returns their paths, and `reached(figures)` that returns what
was found for each of the part's targets (`harness/targets.py`).
"""

from __future__ import annotations

import importlib
from types import ModuleType

PARTS: dict[str, str] = {
    "methods": "what each method costs",
    "appendix_a": "the paper's Appendix A: softmax map and ours",
    "training": "the paper's way of training against cached features",
    "end_to_end": "explain() against the bare backend",
    "memory": "explaining folders: peak memory, and how busy the backend is",
    "reading": "large JPEGs, decoded smaller",
    "peers": "other packages",
    "scaling": "batch, threads, classes, sizes, memory",
    "floor": "the arithmetic of the network",
    "precisions": "backends and precisions",
}
"""Name to what it is about."""


def part(name: str) -> ModuleType:
    """The module of a part; imported when it is needed, as some are heavy."""
    if name not in PARTS:
        raise ValueError(f"a part must be one of {', '.join(PARTS)}, got {name!r}")
    return importlib.import_module(f"benchmarks.parts.{name}")
