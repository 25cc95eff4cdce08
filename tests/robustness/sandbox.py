"""Commands of sigcam in forked processes: killed, short of room, or left alone.

The worker imports what the commands need once and forks for every run, so that a run shows the
command's own work and not seconds of imports. Nothing runs in the worker itself: it stays without
threads, which a fork would lose.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tests.robustness.target import Fault

LONGEST_SECONDS = 100.0
"""A command that takes longer is killed and counts as one that hangs."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")
"""Audit events that change files; "open" does so by its flags."""


@dataclass(frozen=True)
class Ended:
    """How a forked run ended.

    Attributes:
        code: its exit code; negative for the signal that ended it.
        seconds: that it took.
        stderr: what it said.
        changes: how often it opened a file to write, or renamed or removed one.
    """

    code: int
    seconds: float
    stderr: str
    changes: int = 0

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


def import_commands() -> None:
    """Imports what the commands import, and parses the exporter's operators."""
    import onnx
    import onnxruntime
    import torch
    import torch.onnx._internal._lazy_import as lazy

    import sigcam.cli
    import sigcam.convert.quantize
    import sigcam.evaluate.reports
    import sigcam.export
    import sigcam.train.branch
    from tests.support.exporter import read_operators_once

    del onnx, onnxruntime, sigcam
    torch.set_num_threads(1)
    vars(lazy.onnxscript_apis)
    lazy.onnxscript_apis.__getattr__("get_torchlib_ops")
    read_operators_once()
    lazy.onnxscript_apis.get_torchlib_ops()


def run(
    arguments: Sequence[str],
    folder: Path,
    *,
    kill_after: float | None = None,
    kill_at: int | None = None,
    before: Callable[[], None] | None = None,
    stdout: str = os.devnull,
) -> Ended:
    """Runs a command in a folder.

    Args:
        arguments: of `sigcam`.
        folder: the working folder.
        kill_after: seconds after which it gets SIGKILL.
        kill_at: the change of a file, counted from 1, just before which it gets SIGKILL.
        before: called in the process before the command.
        stdout: the file that standard output goes to.
    """
    # Through memory and a pipe: files would fall under the limits that a run has on purpose.
    count = mmap.mmap(-1, 8)
    said, saying = os.pipe()
    begun = time.monotonic()
    child = os.fork()
    if not child:
        os.close(said)
        _be_child(arguments, folder, (count, saying, stdout), kill_at, before)
    os.close(saying)
    with os.fdopen(said, "rb") as stream:
        os.set_blocking(stream.fileno(), False)
        limit = LONGEST_SECONDS if kill_after is None else kill_after
        code, text = _wait(child, begun, limit, stream)
    changes = int.from_bytes(count[:8], "little")
    return Ended(code, time.monotonic() - begun, text, changes)


def in_child(function: Callable[[], str | None]) -> str:
    """Calls a function in a forked process; returns the text that it returns.

    Raises:
        Fault: the function's, or what else it raised.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            told = f"\n{function() or ''}".encode()
        except Fault as exc:
            told = f"{exc.outcome}\n{exc}".encode(errors="replace")
        except BaseException as exc:
            told = f"traceback\n{type(exc).__name__}: {exc}".encode(errors="replace")
        with os.fdopen(writing, "wb") as stream:
            stream.write(told)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        outcome, _, text = stream.read().decode().partition("\n")
    _, status = os.waitpid(child, 0)
    if status:
        raise Fault("crash", f"looking at the files ended the process with {status}")
    if outcome:
        raise Fault(outcome, text)
    return text


def hashes(folder: Path, *, hidden: bool = False) -> dict[str, str]:
    """Returns the SHA-256 of the files in a folder and below, by their relative names.

    What a report says of its own run doesn't count: the seconds that it took, and how many
    images an earlier one had done.

    Args:
        folder: may be missing.
        hidden: whether files count whose name, or a folder's above, begins with a dot.
    """
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if file.is_file() and (hidden or not any(part.startswith(".") for part in name.parts)):
            data = file.read_bytes()
            if file.name == "report.json" and data:
                data = json.dumps(_timeless(json.loads(data))).encode()
            elif file.name == "report.html":
                data = _OWN_RUN.sub(b"", data)
            found[str(name)] = hashlib.sha256(data).hexdigest()
    return found


_OWN_RUN = re.compile(rb"This run took .*? ran\.( \d+ images were done by an earlier run\.)?")


def _timeless(value: dict[str, Any]) -> dict[str, Any]:
    """Leaves out what a report says of its own run: the seconds, and what was done before."""
    return {
        key: one
        for key, one in value.items()
        if not (isinstance(one, dict) and "backend_seconds" in one)
    }


def _wait(child: int, begun: float, seconds: float, stream: BinaryIO) -> tuple[int, str]:
    """Waits for a process, and kills it when the time is over; returns code and what it said."""
    text = bytearray()
    while True:
        text += stream.read() or b""
        done, status = os.waitpid(child, os.WNOHANG)
        if not done and time.monotonic() - begun >= seconds:
            os.kill(child, signal.SIGKILL)
            done, status = os.waitpid(child, 0)
        if done:
            text += stream.read() or b""
            return os.waitstatus_to_exitcode(status), text.decode(errors="replace")
        time.sleep(0.001)


def _be_child(
    arguments: Sequence[str],
    folder: Path,
    ends: tuple[mmap.mmap, int, str],
    kill_at: int | None,
    before: Callable[[], None] | None,
) -> None:
    """Runs the command and ends the process; never returns."""
    code = 70
    try:
        count, saying, stdout = ends
        _watch_changes(count, kill_at, folder)
        os.chdir(folder)
        os.environ["SIGCAM_CACHE_DIR"] = str(folder / "out" / "caches")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(stdout, os.O_WRONLY), 1)
        os.dup2(saying, 2)
        if before is not None:
            before()
        code = _main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _main(arguments: Sequence[str]) -> int:
    from sigcam.cli import main

    try:
        main([str(one) for one in arguments], prog_name="sigcam")
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    else:
        code = 0
    # As the interpreter does when it ends, where what can't be written is an error, too.
    try:
        sys.stdout.flush()
    except OSError:
        traceback.print_exc()
        return 120
    return code


def _watch_changes(count: mmap.mmap, kill_at: int | None, folder: Path) -> None:
    """Counts the changes of files in a folder, and ends the process before one of them."""
    inside, number = str(folder), 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if not writes and event not in _CHANGES:
            return
        path = arguments[0]
        path = os.fsdecode(path) if isinstance(path, (str, bytes)) else ""
        if path.startswith("/") and not path.startswith(inside):
            return
        number += 1
        if number == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count[:8] = number.to_bytes(8, "little")

    sys.addaudithook(hook)
