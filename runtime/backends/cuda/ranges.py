"""NVTX ranges: what a backend on a GPU does, by name, in the timelines of NVIDIA's profilers.

They need the package nvtx (the extra `nvtx`) and cost about a microsecond each; without the package
there are none.
"""

from __future__ import annotations

import functools
import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

DOMAIN = "sigcam"
"""Profilers show the ranges under this name, and can be told to show no others."""


def named(name: str) -> AbstractContextManager[Any]:
    """Marks what is done inside the block, on the host's line of a profiler.

    Args:
        name: what is done, such as "inputs".

    Example:
        >>> with named("inputs"):
        ...     pass
    """
    nvtx = _nvtx()
    if nvtx is None:
        return nullcontext()
    return nvtx.annotate(name, domain=DOMAIN)  # type: ignore[no-any-return]


@functools.cache
def _nvtx() -> Any:
    """Returns the package nvtx; None where it isn't installed."""
    try:
        return importlib.import_module("nvtx")
    except ImportError:
        return None
