"""Writing files whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sigcam.runtime.errors import StorageError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; renames it to `path` on success.

    The temporary file has the suffix of `path` (libraries choose formats by it). On
    any exception, KeyboardInterrupt included, it is removed and `path` stays as it was.

    Raises:
        StorageError: the folder can't be written, or the disk is full.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}-{secrets.token_hex(4)}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Made here, exclusively and with the usual mode, so that a folder that can't be
        # written is found before the caller works on the content.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as exc:
        raise _storage_error(target, exc) from exc
    try:
        yield temporary
        temporary.replace(target)
    except OSError as exc:
        raise _storage_error(target, exc) from exc
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
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
    write_bytes(path, text.encode("utf-8"))


def _storage_error(target: Path, exc: OSError) -> StorageError:
    reason = exc.strerror or str(exc)
    return StorageError(
        f"cannot write {target}: {reason}; choose a folder that is writable and has room"
    )
