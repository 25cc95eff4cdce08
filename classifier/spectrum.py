"""Tells whether a value's positions are frequencies: a Fourier transform came before it."""

from __future__ import annotations

import re

from torch import Tensor, fx

from sigcam.classifier.layout import operator_name

_TRANSFORM = re.compile(r"fft_(i?)[rh]?fft(2|n)?")


def is_spectrum(node: fx.Node) -> bool:
    """Returns whether more axes were transformed than transformed back on the way to a value.

    A sum with a value that was never transformed isn't a spectrum: it keeps that one's positions.

    Args:
        node: a value of a traced graph.

    Example:
        is_spectrum(node_of_rfft2)  # True
    """
    counts: dict[fx.Node, int] = {}
    for other in node.graph.nodes:  # in topological order
        sources = [counts[n] for n in _spatial(other) if n in counts]
        counts[other] = max(0, min(sources, default=0) + _transformed(other))
        if other is node:
            break
    return counts.get(node, 0) > 0


def _transformed(node: fx.Node) -> int:
    """Returns how many axes a node transforms; fewer than none if it transforms back."""
    found = _TRANSFORM.fullmatch(operator_name(node))
    if found is None:
        return 0
    count = {None: 1, "2": 2, "n": node.meta["val"].ndim}[found[2]]
    axes = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")
    count = len(axes) if isinstance(axes, list | tuple) else count
    return -count if found[1] else count


def _spatial(node: fx.Node) -> list[fx.Node]:
    """Returns the values with positions that a node computes with; not gates, nor parameters."""
    return [n for n in node.all_input_nodes if _ndim(n) > 2]


def _ndim(node: fx.Node) -> int:
    """Returns how many axes longer than one a value of a batch has; 0 for other values."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, list | tuple) and value else value
    if not isinstance(value, Tensor) or not any(not isinstance(s, int) for s in value.shape):
        return 0
    return sum(not isinstance(size, int) or size > 1 for size in value.shape)
