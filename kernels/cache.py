"""A folder of compiled kernels, which several processes may use at once.

An entry is a line that names the format and the SHA-256 of the rest, and the rest. It is
written beside its place and renamed, so a reader sees all of it or none; what doesn't match
its sum is not used and is written again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import warnings
from contextlib import suppress
from pathlib import Path

_MAGIC = b"sigcam kernel 1 "
_told: set[Path] = set()


def user_folder(part: str) -> Path:
    """$SIGCAM_CACHE_DIR, or the platform's folder for this user's caches; `part` in it."""
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


def cache_dir() -> Path:
    """Where compiled kernels are kept."""
    return user_folder("kernels")


def key_of(*parts: str) -> str:
    """SHA-256 of the parts, each with its length, so that no two lists give the same."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode()
        total.update(f"{len(data)}:".encode())
        total.update(data)
    return total.hexdigest()


def read(key: str) -> bytes | None:
    """An entry's payload; None where there is none that is whole."""
    try:
        data = _path(key).read_bytes()
    except OSError:
        return None
    head, newline, payload = data.partition(b"\n")
    if not newline or head != _head(payload):
        return None
    return payload


def write(key: str, payload: bytes) -> None:
    """Writes an entry. A folder that can't be written is told once, as a warning."""
    path = _path(key)
    try:
        write_whole(path, _head(payload) + b"\n" + payload)
    except OSError as exc:
        if path.parent not in _told:
            _told.add(path.parent)
            warnings.warn(
                f"compiled kernels can't be kept in {path.parent} ({exc.strerror or exc}): every "
                "process will compile them again, which takes seconds. Set SIGCAM_CACHE_DIR to "
                "a folder that can be written, or SIGCAM_KERNELS to a file made by `sigcam "
                "kernels build`",
                RuntimeWarning,
                stacklevel=3,
            )


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        OSError: its folder can't be written, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:24]}-{secrets.token_hex(4)}{path.suffix}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _head(payload: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(payload).hexdigest().encode()


def _path(key: str) -> Path:
    return cache_dir() / f"{key}.bin"
