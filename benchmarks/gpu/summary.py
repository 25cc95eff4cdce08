"""The report in two screens of text: what failed, and the figures that matter most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.gpu.report import Result

LINES = 60
WIDTH = 100

PAPER = (
    "The paper's own figure (Beyond Softmax, Appendix A, Table 3, another machine): a map takes 14",
    "to 19% longer with the second branch than the classic map of about 100 ms; not than",
    "classification alone.",
)
_TWO_WORDS = ("compare", "model", "latency", "backend")
"""Kinds of checks that are counted for each backend by itself."""


def text(machine: Mapping[str, Any], versions: Mapping[str, str], results: Sequence[Result]) -> str:
    """Returns at most `LINES` lines of at most `WIDTH` columns.

    Args:
        machine: GPUs, driver, system, as the report has them.
        versions: the packages' versions.
        results: how each check ended.
    """
    lines = [
        *_head(machine, versions),
        *_counts(results),
        *_reasons("failed", results, 10),
        *_reasons("skipped", results, 6),
        *_kernels(results),
        *_latencies(results),
    ]
    return "\n".join(_fit(lines, LINES))


def _fit(lines: Sequence[str], most: int) -> list[str]:
    """Cuts lines off: long ones at their end, and those beyond `most`."""
    kept = list(lines) if len(lines) <= most else [*lines[: most - 1], _more(len(lines) - most + 1)]
    return [line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..." for line in kept]


def _more(count: int) -> str:
    return f"  ... {count} more in the JSON"


def _head(machine: Mapping[str, Any], versions: Mapping[str, str]) -> list[str]:
    gpus = ", ".join(
        f"{gpu['name']} ({gpu['capability']}, {gpu['multiprocessors']} multiprocessors)"
        for gpu in machine["gpus"]
    )
    named = ("cuda-bindings", "torch", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13")
    found = ", ".join(f"{name} {versions[name]}" for name in named if name in versions)
    return [f"{gpus}; driver of CUDA {machine['driver_cuda']}; {machine['system']}", found]


def _counts(results: Sequence[Result]) -> list[str]:
    """One line for each kind of check, and all of the kinds that have one check in one line."""
    kinds: dict[str, Counter[str]] = {}
    for one in results:
        words = one.name.split()
        kind = " ".join(words[: 2 if words[0] in _TWO_WORDS else 1])
        kinds.setdefault(kind, Counter())[one.status] += 1
    lines, alone = [], []
    for kind, counts in kinds.items():
        if sum(counts.values()) == 1:
            alone.append(f"{kind} {next(iter(counts))}")
        else:
            said = ", ".join(f"{count} {status}" for status, count in counts.items())
            lines.append(f"{kind:<24}{said}")
    return [*_wrapped(alone), *lines]


def _wrapped(parts: Iterable[str]) -> list[str]:
    lines = [""]
    for part in parts:
        longer = f"{lines[-1]}; {part}" if lines[-1] else part
        if len(longer) > WIDTH:
            lines.append(part)
        else:
            lines[-1] = longer
    return [line for line in lines if line]


def _reasons(status: str, results: Sequence[Result], most: int) -> list[str]:
    chosen = [one for one in results if one.status == status]
    lines = [f"{status}: {one.name}: {' '.join(one.detail.split())}" for one in chosen[:most]]
    return [*lines, *([_more(len(chosen) - most)] if len(chosen) > most else [])]


def _kernels(results: Sequence[Result]) -> list[str]:
    """The times of the kernels; float32 only, the others are in the JSON."""
    figures = {one.name: one.figures for one in results}
    rows = {name: figures.get(name, {}).get("rows", []) for name in ("times", "combine", "enlarge")}
    lines = [
        *(_row(f"{row['shape']}, {row['classes']} classes to 224 x 224", row)
          for row in rows["times"] if row["shape"][1:] == [2048, 14, 14] and not row["half"]),
        *(_row(f"{row['shape']}, {row['classes']} classes, cold, sums only", row)
          for row in rows["combine"] if row["cold"]),
        *(_row(f"40 heatmaps of {row['size']}, {'uint8' if row['bytes_'] else 'float32'}", row)
          for row in rows["enlarge"]
          if row["interpolation"] == "bilinear" and row["shape"][0] > 1),
        *(f"{'1 image, 5 classes to 224 x 224, ' + row['what']:<58}{row['us']:>9.1f} us"
          for row in figures.get("peers", {}).get("rows", [])[:2]),
    ]  # fmt: skip
    if "us" in figures.get("host", {}):
        lines.append(f"{'host, to enqueue the kernels':<58}{figures['host']['us']:>9.1f} us")
    for name, value in figures.get("pool", {}).get("us", {}).items():
        lines.append(f"{'host, a call that allocates, memory ' + name:<58}{value:>9.1f} us")
    if "gb_s" in figures.get("copies", {}):
        copies = figures["copies"]["gb_s"].items()
        lines.append("copies: " + ", ".join(f"{name} {value} GB/s" for name, value in copies))
    return ["", "Kernels (medians)", *lines] if lines else []


def _row(what: str, row: Mapping[str, Any]) -> str:
    return f"{what:<58}{row['us']:>9.1f} us{row['gb_s']:>9.1f} GB/s"


def _latencies(results: Sequence[Result]) -> list[str]:
    """A line for each backend and network: medians by the wall's clock, batch 1."""
    lines = []
    for one in results:
        found = one.figures.get("latency", {})
        if found:
            parts = []
            for name, row in found.items():
                over = "" if row.get("ratio") is None else f" ({100 * (row['ratio'] - 1):+.1f}%)"
                parts.append(f"{name} {row['wall_ms']['p50']:.2f}{over}")
            lines.append(f"{one.name.removeprefix('latency '):<28} {', '.join(parts)}")
    if not lines:
        return []
    return ["", "Latency, batch 1: p50 in ms (over the network alone)", *lines, *PAPER]
