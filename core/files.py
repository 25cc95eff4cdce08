"""Writing files whole or not at all.

A model file's identity, for backends and caches that were made of it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sigcam.core.errors import ArtifactError, StorageError
from sigcam.kernels.cache import user_folder


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; renames it to `path` on success.

    The temporary file has the suffix of `path` (libraries choose formats by it). On
    any exception, KeyboardInterrupt included, it is removed and `path` stays as it was.

    Raises:
        StorageError: `path` is a folder, its folder can't be written, or the disk is full.
    """
    target = Path(path)
    temporary = _temporary(target)
    try:
        yield temporary
        temporary.replace(target)
    except OSError as exc:
        raise _storage_error(target, exc) from exc
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Refuses a place where no file can be made, before the work whose result goes there.

    `path` stays as it was; the folders above it are made.

    Raises:
        StorageError: `path` is a folder, or its folder can't be written.
    """
    _temporary(Path(path)).unlink()


def cache_folder(part: str) -> Path:
    """$SIGCAM_CACHE_DIR, or the platform's folder for this user's caches; `part` in it."""
    return user_folder(part)


def write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    """Writes `data` to `path` whole or not at all.

    Raises:
        StorageError: the folder can't be written, or the disk is full.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8 to `path` whole or not at all.

    Raises:
        StorageError: the folder can't be written, or the disk is full.
    """
    # File names may hold bytes that aren't UTF-8 (as lone surrogates); in JSON, the escape
    # that takes their place stands for the very same characters.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def _temporary(target: Path) -> Path:
    """An empty file beside `target`, made exclusively and with the usual mode."""
    if target.is_dir():
        raise StorageError(f"cannot write {target}: it is a folder; name a file in it")
    # A part of the name: beside one that is as long as allowed, a longer one has no room.
    name = f".{target.stem[:24]}-{secrets.token_hex(4)}{target.suffix}"
    temporary = target.with_name(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as exc:
        raise _storage_error(target, exc) from exc
    return temporary


def _storage_error(target: Path, exc: OSError) -> StorageError:
    reason = exc.strerror or str(exc)
    return StorageError(
        f"cannot write {target}: {reason}; choose a folder that is writable and has room"
    )


_BLOCK = 1 << 20


def model_digest(path: Path) -> str:
    """SHA-256, in hexadecimal, of a model file and of its weights in the file beside it.

    Raises:
        ArtifactError: the file can't be read.
    """
    digest = hashlib.sha256()
    try:
        for part in (path, path.with_name(path.name + ".data")):
            if part == path or part.is_file():
                with part.open("rb") as stream:
                    while block := stream.read(_BLOCK):
                        digest.update(block)
    except OSError as exc:
        raise ArtifactError(f"cannot read {path}: {exc.strerror or exc}") from exc
    return digest.hexdigest()
