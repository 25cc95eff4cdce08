"""Standard streams: lines in any encoding, full devices, closed pipes and Ctrl-C."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TextIO

from sigcam.core.errors import ImageWarning, UsageError
from sigcam.core.progress import cleared

EXIT_STOPPED = 130
"""As shells say of a program that Ctrl-C ended: 128 and the signal's number."""

EXIT_PIPE = 141
"""As they say of one whose reader has gone, `| head` for one."""


class OutputError(OSError):
    """A line can't be printed."""


def write_line(stream: TextIO | None, text: str) -> None:
    r"""Writes a line at once, with escapes for what the stream can't encode.

    That is a class's name on a terminal of another encoding, and a file's name that isn't UTF-8.
    A bar that is on the terminal makes room.

    Args:
        stream: where to; None, as for a stream that the caller closed, writes nothing.
        text: the line.

    Raises:
        OutputError: the stream can't be written: its reader has gone, the device is full.

    Example:
        >>> write_line(sys.stdout, b"caf\xe9.jpg".decode("utf-8", "surrogateescape"))
        caf\udce9.jpg
    """
    if stream is None:
        return
    encoding = _encoding(stream)
    with cleared(stream):
        try:
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            stream.flush()
        except OSError as exc:
            raise OutputError(*exc.args) from exc


def read_standard_input() -> bytes:
    """Reads standard input to its end; one that the caller closed is empty.

    Raises:
        UsageError: it can't be read, as where it is a folder.

    Example:
        data = read_standard_input()  # of `sigcam explain model.onnx - < cat.jpg`
    """
    try:
        return b"" if sys.stdin is None else sys.stdin.buffer.read()
    except OSError as exc:
        raise UsageError(f"cannot read standard input: {exc.strerror or exc}") from exc


def json_line(record: Mapping[str, Any], stream: TextIO | None) -> str:
    r"""Returns a record as one line of JSON that the stream can encode; it reads back the same.

    Example:
        >>> json_line({"label": "caf\u00e9"}, io.TextIOWrapper(io.BytesIO(), "ascii"))
        '{"label": "caf\\u00e9"}'
    """
    text = json.dumps(record, ensure_ascii=False)
    try:
        text.encode(_encoding(stream))
    except UnicodeEncodeError:
        return json.dumps(record)
    return text


def _encoding(stream: TextIO | None) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


@contextmanager
def ends_in_order() -> Iterator[None]:
    """Ends the program in a sentence where its output or its user stops it.

    A device that takes no more output is an error of one line, with exit code 1; a reader that
    has gone ends it without a word (`EXIT_PIPE`), and Ctrl-C with a few (`EXIT_STOPPED`).

    Raises:
        SystemExit: one of these happened.
    """
    _open_standard_files()
    with suppress(AttributeError, ValueError):  # not every stand-in for a stream can do it
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        with _warnings_above_bars():
            yield
    except KeyboardInterrupt:
        _say("error: stopped by Ctrl-C")
        sys.exit(EXIT_STOPPED)
    except OSError as exc:
        if not _is_of_output(exc):
            raise
        _drop_output()
        if exc.errno == errno.EPIPE:
            sys.exit(EXIT_PIPE)
        reason = exc.strerror or exc
        _say(f"error: cannot write to standard output: {reason}; what was printed is incomplete")
        sys.exit(1)


@contextmanager
def _warnings_above_bars() -> Iterator[None]:
    """Makes room for Python's warnings; of an image, they are shown without a place in the code."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if issubclass(category, ImageWarning):
            _say(f"warning: {message}")
            return
        with nullcontext() if sys.stderr is None else cleared(sys.stderr):
            before(message, category, *place)

    warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = before


def _open_standard_files() -> None:
    """Opens what the caller closed, to nowhere.

    The next file that is opened would get its number, and what libraries print would go into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # noqa: PERF203 (three of them)
            os.open(os.devnull, os.O_RDWR)


def _say(text: str) -> None:
    with suppress(OSError, ValueError):
        write_line(sys.stderr, text)


def _is_of_output(error: OSError) -> bool:
    """Says whether an error came from printing, by us or by click (`--help`)."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return isinstance(error, OutputError) or any(
        frame.f_globals.get("__name__") == "click.utils" for frame in frames
    )


def _drop_output() -> None:
    """Lets what is still buffered go nowhere: the interpreter would try again at its end."""
    with suppress(AttributeError, OSError, io.UnsupportedOperation):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
