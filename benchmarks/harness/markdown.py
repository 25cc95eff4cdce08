"""Tables, and figures with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with an empty line before it."""
    lines = [list(head), ["---"] * len(head), *([str(c) for c in row] for row in rows)]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def ratio(values: Sequence[float], limit: float | None = None, *, least: bool = False) -> str:
    """Median and interval; bold where the median misses the limit.

    Args:
        values: median, low, high.
        limit: the most that is allowed, or with `least` the least.
        least: which of the two.
    """
    digits = 3 if values[0] < 3 else 2 if values[0] < 20 else 1
    text, low, high = (f"{value:.{digits}f}" for value in values)
    missed = limit is not None and (values[0] < limit if least else values[0] > limit)
    return f"{f'**{text}**' if missed else text} ({low} to {high})"


def percent(values: Sequence[float]) -> str:
    """A ratio as what it is over 1, in percent, with its interval."""
    text, low, high = (f"{100 * (value - 1):+.1f}" for value in values)
    return f"{text}% ({low} to {high})"


def ms(values: Sequence[float]) -> str:
    """A median in milliseconds."""
    return f"{values[0]:.{0 if values[0] >= 100 else 1 if values[0] >= 10 else 2}f}"


def verdict(value: float, limit: float, *, least: bool = False) -> str:
    """Whether a target is reached."""
    return "reached" if (value >= limit if least else value <= limit) else "**missed**"
