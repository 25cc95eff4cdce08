"""The folder of a repository: it appears whole or not at all, and takes no other one's place."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sigcam.core.errors import StorageError, UsageError

__all__ = ["MARK", "new_folder", "write_json"]

MARK = "sigcam-repository.json"
"""The file in a repository that says what wrote it; only folders with it are ever replaced."""


@contextmanager
def new_folder(target: Path, *, replace: bool, inputs: Sequence[Path] = ()) -> Iterator[Path]:
    """Gives a new folder, hidden at first, which becomes `target` when the block ends well.

    On any exception, KeyboardInterrupt included, it is removed and `target` stays as it was.

    Args:
        target: the folder to make. It may exist if it is empty.
        replace: whether it may be a repository that was written before.
        inputs: files that are read; none of them may lie in a folder that is replaced.

    Raises:
        UsageError: `target` is a file or has contents and may not be replaced.
        StorageError: the folder can't be written.

    Example:
        with new_folder(Path("repository"), replace=False) as folder:
            (folder / "config.json").write_text("{}")
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100 (links stay: what they name is kept)
    _check(target, replace, inputs)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=".sigcam-", dir=target.parent))
    except OSError as exc:
        raise StorageError(f"cannot write beside {target}: {exc.strerror or exc}") from exc
    try:
        staged = hidden / "new"
        staged.mkdir()  # with the usual mode, which the hidden folder's isn't
        yield staged
        _check(target, replace, inputs)
        _take_place(staged, target)
    except OSError as exc:
        raise StorageError(
            f"cannot write {target}: {exc.strerror or exc}; choose a folder that is writable and "
            "has room"
        ) from exc
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON that a person can read.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(Path(folder) / "one.json", {"a": 1})
        ...     print((Path(folder) / "one.json").read_text(), end="")
        {
          "a": 1
        }
    """
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check(target: Path, replace: bool, inputs: Sequence[Path]) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError(f"{target} exists and is no folder; name another one")
    try:
        found = [one.name for one in target.iterdir()] if target.is_dir() else []
    except OSError as exc:
        raise StorageError(f"cannot read {target}: {exc.strerror or exc}") from exc
    if not found:
        return
    if MARK not in found:
        raise UsageError(
            f"{target} isn't empty and no repository of sigcam's; name another folder, or empty it"
        )
    if not replace:
        raise UsageError(
            f"there is a repository in {target}; replace it with --replace, or name another folder"
        )
    for one in inputs:
        if target.resolve() in one.resolve().parents:
            raise UsageError(f"{one} lies in {target}, which would be replaced; copy it elsewhere")


def _take_place(staged: Path, target: Path) -> None:
    """Renames the new folder to its place; what was there goes to the hidden folder."""
    if not (target.is_dir() and any(target.iterdir())):
        staged.rename(target)  # over an empty folder, or to none
        return
    previous = staged.with_name("previous")
    target.rename(previous)
    try:
        staged.rename(target)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            previous.rename(target)
        raise
