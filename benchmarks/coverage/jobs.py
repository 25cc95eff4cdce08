"""Jobs that run in a process of their own with a time limit, and the file of their results."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Result = dict[str, Any]

# One process imports everything and is copied for each job: the imports take as long as many
# a job.
_CONTEXT = multiprocessing.get_context("forkserver")


def prepare() -> None:
    """Says what the process that is copied imports; to be called once, before `run`."""
    # Its interpreter must find the module; it isn't told `sys.path` in time.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    _CONTEXT.set_forkserver_preload(["benchmarks.coverage.warm"])


def run(
    job: Callable[..., Result], arguments: tuple[Any, ...], known: Result, limit: float,
    threads: int = 1,
) -> Result:  # fmt: skip
    """Runs a job in a process of its own.

    Args:
        job: a function of a module; its result is returned.
        arguments: for it.
        known: what the result holds besides "status" and "reason" where there is none.
        limit: seconds until it is ended.
        threads: for PyTorch and ONNX Runtime.
    """
    here, there = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_child, args=(job, arguments, threads, there))
    process.start()
    there.close()
    try:
        if here.poll(limit):
            found: Result = here.recv()
            return found
        return {**known, "status": "late", "reason": f"not done after {limit:g} s"}
    except EOFError:
        process.join()
        reason = f"the process ended with code {process.exitcode}"
        return {**known, "status": "failed", "reason": reason}
    finally:
        process.kill()
        process.join()


def read(path: Path) -> list[Result]:
    """Returns the results in the file, in their order; none without a file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def _child(
    job: Callable[..., Result], arguments: tuple[Any, ...], threads: int, end: Connection
) -> None:
    import warnings

    import torch

    warnings.simplefilter("ignore")  # the networks' own
    torch.set_num_threads(threads)
    end.send(job(*arguments))
