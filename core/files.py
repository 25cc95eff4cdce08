"""Files: written whole or not at all, the folder of caches, and what identifies contents.

This is the one module of ours that `sigcam.kernels` imports.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sigcam.core.errors import StorageError
from sigcam.core.inputs import refuse_input

__all__ = [
    "StorageError", "atomic_path", "cache_folder", "check_writable", "key_of",
    "write_bytes", "write_text",
]  # fmt: skip


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`, and renames it to `path` on success.

    The temporary file has the suffix of `path` (libraries choose formats by it). On
    any exception, KeyboardInterrupt included, it is removed and `path` stays as it was.

    Raises:
        StorageError: `path` is a folder or a device, its folder can't be written, or the disk is
            full.
        UsageError: it is an input (`sigcam.core.inputs`).

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name) / "numbers.txt"
        >>> with atomic_path(path) as temporary:
        ...     size = temporary.write_text("1 2 3")
        ...     path.exists()
        False
        >>> path.read_text()
        '1 2 3'
        >>> folder.cleanup()
    """
    target = Path(path)
    temporary = _temporary(target)
    try:
        yield temporary
        temporary.replace(target)
    except OSError as exc:
        raise _storage_error(target, exc) from exc
    finally:
        with suppress(OSError):  # it is gone, or an error that comes first is being raised
            temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Refuses a place where no file can be made, before the work whose result goes there.

    `path` stays as it was; the folders above it are made.

    Raises:
        StorageError: `path` is a folder or a device, or its folder can't be written.
        UsageError: it is an input (`sigcam.core.inputs`).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_writable(Path(folder) / "deep" / "model.onnx")
        ...     list((Path(folder) / "deep").iterdir())
        []
    """
    _temporary(Path(path)).unlink()


def write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    """Writes `data` to `path` whole or not at all.

    Raises:
        StorageError: the folder can't be written, or the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_bytes(Path(folder) / "deep" / "data.bin", b"abc")
        ...     (Path(folder) / "deep" / "data.bin").read_bytes()
        b'abc'
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8 to `path` whole or not at all.

    Raises:
        StorageError: the folder can't be written, or the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(Path(folder) / "names.txt", "chat, élan")
        ...     (Path(folder) / "names.txt").read_text(encoding="utf-8")
        'chat, élan'
    """
    # File names may hold bytes that aren't UTF-8 (as lone surrogates); in JSON, the escape
    # that takes their place stands for the very same characters.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def cache_folder(part: str) -> Path:
    """Returns the folder in which one part of sigcam keeps its cache; it may not exist yet.

    It lies in the folder that the environment variable SIGCAM_CACHE_DIR names, or else in the
    platform's folder for this user's caches.

    Args:
        part: the folder's name, such as "kernels".

    Example:
        >>> cache_folder("kernels").name
        'kernels'
    """
    given = os.environ.get("SIGCAM_CACHE_DIR")
    if given:
        return Path(given) / part
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "sigcam" / part


def key_of(*parts: str) -> str:
    """Returns the SHA-256 of texts, in hexadecimal, as the name of a cache's entry.

    Each text counts with its length, so that no two lists of texts run into each other.

    Example:
        >>> key_of("ab", "c") == key_of("a", "bc")
        False
        >>> len(key_of("ab", "c"))
        64
    """
    total = hashlib.sha256()
    for part in parts:
        data = part.encode()
        total.update(f"{len(data)}:".encode())
        total.update(data)
    return total.hexdigest()


def _temporary(target: Path) -> Path:
    """Makes an empty file beside `target`, exclusively and with the usual mode."""
    _check_target(target)
    # A part of the name: beside one that is as long as allowed, a longer one has no room.
    name = f".{target.stem[:24]}-{secrets.token_hex(4)}{target.suffix}"
    temporary = target.with_name(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as exc:
        raise _storage_error(target, exc) from exc
    return temporary


def _check_target(target: Path) -> None:
    """Refuses what a rename must not take the place of: a folder, a device, an input."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as exc:
        raise _storage_error(target, exc) from exc
    if stat.S_ISDIR(mode):
        raise StorageError(f"cannot write {target}: it is a folder; name a file in it")
    if not stat.S_ISREG(mode):  # as root, a rename would take the place of /dev/null
        raise StorageError(f"cannot write {target}: it is no plain file; name another one")
    refuse_input(target)


def _storage_error(target: Path, exc: OSError | ValueError) -> StorageError:
    reason = getattr(exc, "strerror", None) or str(exc)
    if getattr(exc, "errno", None) == errno.ENAMETOOLONG:
        return StorageError(f"cannot write {target}: {reason}; choose a shorter name")
    return StorageError(
        f"cannot write {target}: {reason}; choose a folder that is writable and has room"
    )
