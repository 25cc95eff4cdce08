"""Temporary folders in the system's place for them, whose failures are told as a full disk is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sigcam.core.errors import StorageError

__all__ = ["scratch_folder"]


@contextmanager
def scratch_folder(part: str) -> Iterator[Path]:
    """Gives a new folder for intermediate files, and removes it with all that is in it.

    It lies where the environment variable TMPDIR says, or in the system's usual place.

    Args:
        part: what the folder is for, as a part of its name: "quantize".

    Raises:
        StorageError: no such folder can be made, or writing in it fails (any OSError inside).

    Example:
        >>> with scratch_folder("example") as folder:
        ...     size = (folder / "numbers.txt").write_text("1 2 3")
        ...     folder.name.startswith("sigcam-example-")
        True
        >>> folder.exists()
        False
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"sigcam-{part}-"))
    except OSError as exc:
        raise StorageError(f"no temporary folder can be made: {_reason(exc)}") from exc
    try:
        yield folder
    except OSError as exc:
        raise StorageError(
            f"cannot write in the temporary folder {folder}: {_reason(exc)}"
        ) from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _reason(exc: OSError) -> str:
    return f"{exc.strerror or exc}; set TMPDIR to a folder that is writable and has room"
