"""Commands whose outputs lie on a disk that is full or read-only, or in files that can't grow."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sigcam.core.errors import StorageError
from tests.robustness import sandbox, work
from tests.robustness.target import Fault, Target, shortened

_BLOCK = 4096

_Options = dict[str, Any]


class Disks(Target):
    """A command that can't write says so in one sentence, and leaves no half file.

    How much room there is is drawn from nothing to a little more than an undisturbed run takes,
    so that over many items each of a command's writes is the one that fails.
    """

    seconds = 240.0

    def make_corpus(self, folder: Path) -> None:
        work.make_corpus(folder)

    def open(self, folder: Path) -> None:
        sandbox.import_commands()
        self._inputs = folder / "inputs"
        self._needs = {}
        for name in work.COMMANDS:
            files = [one for one in (folder / name / work.OUT).rglob("*") if one.is_file()]
            sizes = [file.stat().st_size for file in files]
            blocks = sum(size // _BLOCK + 2 for size in sizes)
            self._needs[name] = {"largest": max(sizes), "blocks": blocks}
        self._faults = ["files that can't grow", "read-only folder", "full standard output"]
        if can_mount():
            self._faults.append("small disk")

    def damage(self, rng: random.Random, scratch: Path) -> str:
        self._name = rng.choice(tuple(work.COMMANDS))
        fault = rng.choice(self._faults)
        need = self._needs[self._name]
        shutil.copytree(self._inputs, scratch, dirs_exist_ok=True)
        out = scratch / work.OUT
        out.mkdir()
        self._before = sandbox.hashes(scratch)
        self._way: Callable[[], contextlib.AbstractContextManager[_Options]]
        if fault == "small disk":
            size = _BLOCK * rng.randint(1, need["blocks"] + 8)
            self._way = partial(_small_disk, out, size)
            fault = f"disk of {size} bytes"
        elif fault == "files that can't grow":
            size = rng.randint(0, int(need["largest"] * 1.1))
            self._way = partial(_small_files, size)
            fault = f"no file above {size} bytes"
        elif fault == "read-only folder":
            self._way = partial(_read_only, out)
        else:
            self._way = _full_output
        return f"{self._name}: {fault}"

    def check(self, rng: random.Random, scratch: Path) -> None:
        command = work.COMMANDS[self._name]
        out = scratch / work.OUT
        with self._way() as options:
            ended = sandbox.run(command.arguments, scratch, **options)
            sandbox.in_child(lambda: work.check_files(scratch))
            left = [
                one.name for one in out.rglob("*") if one.name.startswith((".", "sigcam-", "tmp"))
            ]
        after = sandbox.hashes(scratch)
        if after | self._before != after:
            raise Fault("differs", "an input was changed")
        if left:
            raise Fault("litter", f"left over: {', '.join(sorted(left))}")
        _check_said(ended)


def _check_said(ended: sandbox.Ended) -> None:
    """Looks at how a command ended that may have lacked room.

    Raises:
        StorageError: it failed and said why, as it should.
        Fault: it hung, died or gave a traceback, or no sentence.
    """
    if ended.killed:
        raise Fault("hang", f"killed after {ended.seconds:.0f} s")
    if ended.code < 0:
        raise Fault("crash", f"ended by {signal.Signals(-ended.code).name}")
    lines = ended.stderr.strip().splitlines() or [""]
    if any(line.startswith("Traceback") for line in lines):
        raise Fault("traceback", shortened(" ".join(lines[-3:])))
    if ended.code and not lines[-1].lower().startswith("error: "):
        raise Fault("message", f"exit code {ended.code} and {shortened(lines[-1])!r}")
    if ended.code:
        raise StorageError(lines[-1])


def can_mount() -> bool:
    """Says whether this process may mount a file system; usually root may."""
    with tempfile.TemporaryDirectory() as folder:
        if shutil.which("mount") is None or not _mount(Path(folder), f"size={_BLOCK}"):
            return False
        _unmount(Path(folder))
    return True


def _mount(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=True)


@contextlib.contextmanager
def _small_disk(out: Path, size: int) -> Iterator[_Options]:
    """Puts a file system of so many bytes in the place of the outputs."""
    if not _mount(out, f"size={size}"):
        raise RuntimeError("a file system could be mounted before, and can't be now")
    try:
        yield {"before": partial(_temporary_files_in, out)}
    finally:
        _unmount(out)


def _temporary_files_in(out: Path) -> None:
    """Has temporary files lie on the same disk, as they do on most small machines."""
    os.environ["TMPDIR"] = str(out)
    tempfile.tempdir = None


@contextlib.contextmanager
def _small_files(size: int) -> Iterator[_Options]:
    """Lets no file of the command become larger; writing more fails as on a full disk."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    yield {"before": limit}


@contextlib.contextmanager
def _read_only(out: Path) -> Iterator[_Options]:
    """Makes the outputs' folder one that can't be written, for root too where that goes."""
    mounted = _mount(out, "ro")
    if not mounted:
        out.chmod(0o555)
    try:
        yield {}
    finally:
        if mounted:
            _unmount(out)
        else:
            out.chmod(0o755)


@contextlib.contextmanager
def _full_output() -> Iterator[_Options]:
    """Sends standard output to a device that is full."""
    full = Path("/dev/full")
    if not full.exists():
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(full))
    yield {"stdout": str(full)}
