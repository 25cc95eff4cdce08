"""A process with a time limit that holds for the processes it starts, too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

_LAST_WORDS = 10.0
"""Seconds in which an ended process's output must come to its end."""


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; None if it was stopped at the time limit.
        stderr: what it said there.
    """

    code: int | None
    stderr: str


def run_process(command: Sequence[str], timeout: float) -> Ended:
    """Runs a command to its end.

    Whatever it started is ended with it, as a builder or a sanitizer left behind would hold
    the GPU while others are measured. (On Windows that holds for the process itself only.)

    Args:
        command: program and arguments.
        timeout: in seconds.
    """
    process = subprocess.Popen(
        list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    said = ""
    code = None
    try:
        _, said = process.communicate(timeout=timeout)
        code = process.returncode
    except subprocess.TimeoutExpired:
        _end(process)
        with suppress(subprocess.TimeoutExpired):  # something left the group with its output
            _, said = process.communicate(timeout=_LAST_WORDS)
    finally:
        _end(process)
    return Ended(code, said)


def _end(process: subprocess.Popen[str]) -> None:
    if sys.platform == "win32":
        process.kill()
        return
    with suppress(ProcessLookupError, PermissionError):  # nobody is left
        os.killpg(process.pid, signal.SIGKILL)
