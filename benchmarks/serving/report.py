"""The part of docs/serving.md that the figures are shown in."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.machine import busy
from benchmarks.harness.markdown import table
from benchmarks.harness.page import machine_text
from benchmarks.serving.measure import median
from benchmarks.serving.servers import SERVERS

Figures = dict[str, Any]

BEGIN, END = "<!-- written by `python -m benchmarks.serving` -->", "<!-- to here -->"


def write_part(page: str, records: Figures, source: str) -> str:
    """Puts the figures into the page, between the two marks.

    Args:
        page: the text of docs/serving.md.
        records: of the parts that were measured.
        source: the file of figures, as the page names it.

    Raises:
        ValueError: the page lacks the marks.
    """
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ValueError(f"the page lacks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{section(records, source)}\n{END}{after}"


def section(records: Figures, source: str) -> str:
    """Returns the text: about the machine, the targets, and the tables."""
    if not records:
        return "Not measured yet: `python -m benchmarks.serving`.\n"
    parts = [_about(records, source), _targets(records)]
    if "latency" in records:
        parts.append(_shares(records["latency"]["figures"]))
    if "peers" in records:
        parts.append(_peers(records["peers"]["figures"]))
    return "\n".join(parts)


def _about(records: Figures, source: str) -> str:
    first = next(iter(records.values()))["about"]
    lines = [
        f"{machine_text(first['machine'])}. Clients and server share the machine and its loopback. "
        f"EfficientNet-Lite0 with ONNX Runtime; JPEG files of 640 x 480 in, boxes and the heatmap "
        f"as PNG out; the answer was compared with `Session.explain`. Arrivals are those of a "
        f"Poisson process, or evenly spaced where it says so; latency counts from the time at "
        f"which a request was due. Figures: `{source}`.\n"
    ]
    for name, record in records.items():
        about = record["about"]
        notes = [f"{about['seconds']} s"]
        if about["quick"]:
            notes.append("a short trial, which shows the form and not the speed")
        if busy(about["load_before"], about["machine"]["cores"]):
            notes.append(f"**the machine was busy: load {about['load_before']}**")
        lines.append(f"- {name}: `{about['command']}`, {about['date']}; {'; '.join(notes)}.")
    return "\n".join(lines) + "\n"


def _targets(records: Figures) -> str:
    rows: list[tuple[str, ...]] = []
    if "throughput" in records:
        found = records["throughput"]["figures"]
        rows += [
            _row(f"`{SERVERS[name].title}`: images a second, over the bare backend at its best "
                 "batch", median(ratios), 0.85, least=True)
            for name, ratios in found["ratios"].items()
        ]  # fmt: skip
    if "latency" in records:
        rows += _latency_rows(records["latency"]["figures"])
    if "peers" in records:
        rows += _peer_rows(records["peers"]["figures"])
    if "soak" in records:
        found = records["soak"]["figures"]
        middle, low, high = found["slope_mib_an_hour"]
        minutes = found["seconds"] / 60
        rows.append((f"{minutes:.0f} minutes at 80%: memory, MiB an hour",
                     f"{middle:g} [{low:g}, {high:g}]", "0 in the interval",
                     _yes(low <= 0 <= high)))  # fmt: skip
        errors = sum(n for status, n in found["counts"].items() if status != "200")
        reached = f"{errors} of {sum(found['counts'].values())}"
        what = f"{minutes:.0f} minutes at 80%: requests without an answer"
        rows.append((what, reached, "0", _yes(not errors)))
    if "kill" in records:
        rows += _kill_rows(records["kill"]["figures"])
    return table(("figure", "reached", "target", ""), rows)


def _latency_rows(found: Figures) -> list[tuple[str, ...]]:
    at, single = found["at"], 1000 * found["single"]
    over, near = at["10.0"], at["0.9"]
    rows = [
        _row("p99 at 70% of capacity, evenly, over the bare backend's single run",
             found["evenly"]["0.7"]["p99_ms"] / single, 3),
        _row("the same at random times", at["0.7"]["p99_ms"] / single, 3),
        _row("p99 of what is accepted at 10 times the capacity, over that at 90%",
             over["p99_ms"] / near["p99_ms"], 1.5),
    ]  # fmt: skip
    if over["refused_p99_ms"] is not None:
        rows.append(_row("refused within, p99, milliseconds", over["refused_p99_ms"], 50))
    return rows


def _peer_rows(found: Figures) -> list[tuple[str, ...]]:
    own = median(found["rates"]["sigcam"])
    return [
        _row(f"images a second, over {SERVERS[name].title}", own / median(rates), 1.0, least=True)
        for name, rates in found["rates"].items()
        if SERVERS[name].module is not None and rates
    ]


def _kill_rows(found: Figures) -> list[tuple[str, ...]]:
    other = found["broken_elsewhere"]
    return [
        ("kill -9 of a worker: requests of others without an answer", str(other), "0",
         _yes(not other)),
        _row("kill -9 of a worker: back after, seconds", found["back_seconds"], 5),
    ]  # fmt: skip


def _shares(found: Figures) -> str:
    rows = [
        (f"{float(share):g}", times, f"{one['rate']:g}", f"{one['p50_ms']:g}", f"{one['p99_ms']:g}",
         str(one["counts"].get("200", 0)), str(one["counts"].get("429", 0)),
         "" if one["refused_p99_ms"] is None else f"{one['refused_p99_ms']:g}",
         f"{one['client_late_p99_ms']:g}")
        for kind, times in (("evenly", "even"), ("at", "random"))
        for share, one in found[kind].items()
    ]  # fmt: skip
    head = ("of capacity", "arrivals", "answers a second", "p50 ms", "p99 ms", "answered",
            "refused", "refused p99 ms", "client late p99 ms")  # fmt: skip
    return (
        f"Capacity is {found['capacity']:.1f} images a second; one image alone takes the bare "
        f"backend {1000 * found['single']:.1f} ms.\n\n{table(head, rows)}"
    )


def _peers(found: Figures) -> str:
    rows = [
        (SERVERS[name].title, f"{median(rates):.1f}", ", ".join(f"{one:.1f}" for one in rates))
        for name, rates in found["rates"].items()
        if rates
    ]
    text = table(("server", "images a second, median", "rounds"), rows)
    for name, reason in found["failed"].items():
        text += f"\n{SERVERS[name].title} was not measured: {reason.splitlines()[0]}\n"
    return text


def _row(what: str, value: float, limit: float, *, least: bool = False) -> tuple[str, ...]:
    sign = ">=" if least else "<="
    good = value >= limit if least else value <= limit
    return what, f"{value:.2f}", f"{sign} {limit:g}", _yes(good)


def _yes(good: bool) -> str:
    return "reached" if good else "**missed**"
