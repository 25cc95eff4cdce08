"""The table of metrics as text, for Markdown and HTML. Numbers are rounded here, for reading."""

from __future__ import annotations

import math

from sigcam.evaluate.reports.summary import Summary
from sigcam.evaluate.results.bootstrap import Comparison
from sigcam.evaluate.results.metrics import Result


def head_of(summary: Summary) -> list[str]:
    """Returns the table's first row.

    Example:
        head_of(summary)  # ["metric, %", "images", "sigmoid", "softmax"]
    """
    names = [one.name for one in summary.evaluation.artifacts]
    return ["metric, %", "images", names[0], *names[1:]]


def rows_of(summary: Summary) -> list[list[str]]:
    """Returns a row for each metric.

    The first artifact's cell has its interval, the others' the difference to the first.

    Example:
        for row in [head_of(summary), *rows_of(summary)]:
            print("; ".join(row))
    """
    return [
        [
            f"{one.metric.label} {'↑' if one.metric.higher_is_better else '↓'}",
            str(one.images),
            _first(one.artifacts[0]),
            *(_other(one, further) for further in one.artifacts[1:]),
        ]
        for one in summary.results
    ]


def _first(one: Comparison) -> str:
    return f"{_digits(one.metric.value)} ({_range(one.metric.low, one.metric.high)})"


def _other(result: Result, one: Comparison) -> str:
    low, high = one.difference.low, one.difference.high
    sure = math.isfinite(low) and (low > 0 or high < 0)
    better = (one.difference.value > 0) == result.metric.higher_is_better
    verdict = "" if not sure else " better" if better else " worse"
    value, difference = _digits(one.metric.value), f"{one.difference.value:+.2f}"
    return f"{value}; {difference} ({_range(low, high)}){verdict}"


def _range(low: float, high: float) -> str:
    return f"{_digits(low)} to {_digits(high)}" if math.isfinite(low) else "no interval"


def _digits(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "none"


def explanation_of(summary: Summary) -> str:
    """Explains the numbers of the table in a sentence.

    Example:
        explanation_of(summary)  # "In brackets 95% intervals of 2000 bootstrap drawings ..."
    """
    text = (
        f"In brackets {summary.level:.0%} intervals of {summary.resamples} bootstrap drawings of "
        "the images"
    )
    if len(summary.evaluation.artifacts) > 1:
        text += (
            "; behind the semicolon the difference to the first artifact on the same drawings, "
            "with a verdict where its interval leaves out zero"
        )
    return text + "."


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    r"""Writes a table in Markdown; pipes in cells are escaped.

    Args:
        head: the cells of the first row.
        rows: the cells of the further rows.

    >>> print(markdown_table(["a", "b"], [["1", "x|y"]]), end="")
    | a | b |
    | --- | --- |
    | 1 | x\|y |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )
