"""No output takes the place of an input: what is read inside `inputs_kept` isn't written over.

Files are compared by what they are on the disk, so a link, another spelling and a name in
/proc/self/fd are the file that they lead to. `sigcam.core.files` asks before it writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from sigcam.core.errors import UsageError

__all__ = ["identity", "inputs_kept", "keep", "refuse_input"]

Identity = tuple[int, int]


class _Inputs:
    """The files that one command reads; `outer` has those of the call that it is a part of."""

    def __init__(self, outer: _Inputs | None) -> None:
        self.outer = outer
        self._new: list[Path] = []
        self._known: dict[Identity, Path] = {}

    def add(self, paths: Iterable[Path]) -> None:
        self._new += paths

    def named(self, asked: Identity) -> Path | None:
        """Returns the name under which a file is read, or None."""
        # Only now: most outputs don't exist yet, and a data set may have a million images.
        while self._new:
            path = self._new.pop()
            found = identity(path)
            if found is not None:
                self._known.setdefault(found, path)
        own = self._known.get(asked)
        return own if own is not None or self.outer is None else self.outer.named(asked)


_current: ContextVar[_Inputs | None] = ContextVar("inputs", default=None)


def identity(path: str | Path) -> Identity | None:
    """Returns what a file or folder is, whatever it is called: its device and its number there.

    None where there is none, or where it can't be looked at.

    Example:
        >>> identity(".") == identity(Path.cwd()), identity("no such file")
        (True, None)
    """
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


@contextmanager
def inputs_kept(*paths: str | Path) -> Iterator[None]:
    """Keeps files from being written over until the block ends, in this thread and its helpers.

    Args:
        paths: what is read, whether it is there yet or not. `keep` adds further ones.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     with inputs_kept(file.name):
        ...         refuse_input(file.name)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: ... is an input and can't be written over; ...
    """
    inputs = _Inputs(_current.get())
    inputs.add(Path(path) for path in paths)
    token = _current.set(inputs)
    try:
        yield
    finally:
        _current.reset(token)


def keep(paths: Iterable[Path]) -> None:
    """Adds files to those that the innermost `inputs_kept` keeps; outside of one nothing happens.

    Example:
        >>> with inputs_kept():
        ...     keep([Path("model.onnx"), Path("cat.jpg")])
    """
    inputs = _current.get()
    if inputs is not None:
        inputs.add(paths)


def refuse_input(path: str | Path) -> None:
    """Refuses to write over a file that is read.

    Raises:
        UsageError: it is one of those kept, by whatever name.
    """
    inputs = _current.get()
    if inputs is None:
        return
    found = identity(path)
    name = None if found is None else inputs.named(found)
    if name is not None:
        also = "" if str(name) == str(path) else f" (as {name})"
        raise UsageError(
            f"{path} is an input{also} and can't be written over; name another file "
            "or folder for what is written"
        )
