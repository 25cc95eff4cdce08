"""How a model's runs share the processors: how many at a time, of how many images and threads."""

from __future__ import annotations

from dataclasses import dataclass

from sigcam.core.cpus import thread_limit, usable_cpus
from sigcam.serve.options import MOST_TOGETHER, ServeOptions

__all__ = ["Runs", "runs_by_backend", "runs_by_callers"]

_CPUS_OF_A_RUN = 4
"""Processors for each of the runs at the same time, where there are so many."""


@dataclass(frozen=True)
class Runs:
    """The runs of a model.

    Attributes:
        parallel: at the same time.
        images: most in each.
        threads: that compute, as `BackendOptions.threads`; None for what the backend takes.
    """

    parallel: int
    images: int
    threads: int | None = None


def runs_by_backend(options: ServeOptions) -> Runs:
    """Returns the runs of a backend that computes on a GPU, or has threads of its own for all.

    Args:
        options: what is asked for; the rest is chosen.

    Example:
        >>> runs_by_backend(ServeOptions())
        Runs(parallel=1, images=8, threads=None)
    """
    return Runs(options.parallel_runs or 1, options.most_together)


def runs_by_callers(
    options: ServeOptions, threads: int | None = None, cpus: int | None = None
) -> Runs:
    """Returns the runs of a backend in which the callers' threads compute.

    Two at least where there are two processors: the threads of one run wait for each other, and
    for those that decode and encode images. On two processors, two runs of EfficientNet-Lite0 by
    one thread each answer 12% more images a second than one run by two threads; a lone image takes
    a tenth longer. One thread takes as long for images together as for one after the other (9.8 ms
    for each of 1 or 8), and together each waits for all: one by one took a third off the 99th
    percentile under load.

    Args:
        options: what is asked for; the rest is chosen.
        threads: as `BackendOptions.threads`, where they are asked for.
        cpus: processors; None for those that this process may use.

    Example:
        >>> runs_by_callers(ServeOptions(), cpus=2)
        Runs(parallel=2, images=1, threads=1)
        >>> runs_by_callers(ServeOptions(), cpus=16)
        Runs(parallel=4, images=8, threads=13)
        >>> runs_by_callers(ServeOptions(parallel_runs=1), cpus=2)
        Runs(parallel=1, images=8, threads=None)
    """
    cpus = cpus or thread_limit() or usable_cpus()
    parallel = options.parallel_runs
    if parallel is None:
        parallel = max(min(cpus, 2), cpus // _CPUS_OF_A_RUN) if threads is None else 1
    if threads is None and parallel > 1:
        threads = max(1, cpus - parallel + 1)  # the callers, and the rest that works for all
    by_one = threads == 1 or cpus == 1
    return Runs(parallel, options.batch_size or (1 if by_one else MOST_TOGETHER), threads)
