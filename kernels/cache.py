"""A folder of compiled kernels, which several processes may use at once.

An entry is a line that names the format and the SHA-256 of the rest, and the rest. It is
written beside its place and renamed, so a reader sees all of it or none; what doesn't match
its sum is not used and is written again.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

from sigcam.core.files import StorageError, cache_folder, write_bytes

_MAGIC = b"sigcam kernel 1 "
_told: set[Path] = set()
"""Folders that can't be written and that a warning has named."""


def cache_dir() -> Path:
    """Returns the folder in which compiled kernels are kept; it may not exist yet.

    Example:
        >>> cache_dir().name
        'kernels'
    """
    return cache_folder("kernels")


def read(key: str) -> bytes | None:
    """Returns an entry's payload, or None where there is no whole entry of that key.

    Example:
        >>> import tempfile
        >>> from unittest import mock
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with mock.patch.dict("os.environ", SIGCAM_CACHE_DIR=folder):
        ...         write("sm_86", b"cubin")
        ...         read("sm_86"), read("sm_90")
        (b'cubin', None)
    """
    try:
        data = _path(key).read_bytes()
    except OSError:
        return None
    head, newline, payload = data.partition(b"\n")
    if not newline or head != _head(payload):
        return None
    return payload


def write(key: str, payload: bytes) -> None:
    """Writes an entry; warns once of a folder that can't be written, and goes on without.

    Example:
        write(key_of(source, "sm_86"), cubin)  # compiled once a machine
    """
    path = _path(key)
    try:
        write_bytes(path, _head(payload) + b"\n" + payload)
    except StorageError as exc:
        if path.parent not in _told:
            _told.add(path.parent)
            warnings.warn(
                f"compiled kernels can't be kept ({exc.__cause__ or exc}): {path.parent} can't "
                "be written, and every process will compile them again, which takes seconds. "
                "Set SIGCAM_CACHE_DIR to a folder that can be written, or SIGCAM_KERNELS to a "
                "file made by `sigcam kernels build`",
                RuntimeWarning,
                stacklevel=3,
            )


def _head(payload: bytes) -> bytes:
    """Returns the first line of an entry, without its end."""
    return _MAGIC + hashlib.sha256(payload).hexdigest().encode()


def _path(key: str) -> Path:
    return cache_dir() / f"{key}.bin"
