"""The server's log: a line of JSON, or of text, for each request and each event.

A line never holds what a client sent beside the request's path and id: no query, no headers, no
body. So no image, no token and no class that somebody asked for gets into the log.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import datetime, timezone
from typing import Any, Literal, TextIO

LOGGER = "sigcam.serve"
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_LONGEST = 2000
"""Characters of a message: those of foreign libraries may quote what they failed at."""


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON, in UTC.

    Example:
        >>> record = logging.LogRecord("sigcam.serve", logging.INFO, "", 0, "ready", None, None)
        >>> record.created = 0.0
        >>> JsonFormatter().format(record)
        '{"time": "1970-01-01T00:00:00.000Z", "level": "info", "message": "ready"}'
    """

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, without its end."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "message": record.getMessage()[:_LONGEST],
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = _frames(record)
        return json.dumps(line, ensure_ascii=True, allow_nan=False, default=str)


class TextFormatter(logging.Formatter):
    """Writes a record as one line for people.

    Example:
        >>> record = logging.LogRecord("sigcam.serve", logging.INFO, "", 0, "ready", None, None)
        >>> record.created, record.fields = 0.0, {"port": 8000}
        >>> TextFormatter().format(record)
        '1970-01-01T00:00:00.000Z info ready port=8000'
    """

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, without its end; a traceback follows in lines of its own."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        # What a client chose must not begin a new line, nor move a terminal's cursor.
        message = _printable(record.getMessage()[:_LONGEST])
        words = [_time(record), record.levelname.lower(), message]
        words += [f"{name}={_printable(str(value))}" for name, value in fields.items()]
        return "\n".join([" ".join(words), *(_frames(record) if record.exc_info else [])])


def configure_logging(form: LogFormat, level: LogLevel = "info", to: TextIO | None = None) -> None:
    """Sends the log of this process, uvicorn's included, to standard error.

    Args:
        form: "json" or "text".
        level: the least important level that is written.
        to: another stream.

    Example:
        >>> import io
        >>> lines = io.StringIO()
        >>> configure_logging("json", to=lines)
        >>> log_event("ready", models=2)
        >>> json.loads(lines.getvalue())["models"]
        2
    """
    handler = _StandardError() if to is None else logging.StreamHandler(to)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    for name in (LOGGER, "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler] if name != "uvicorn.error" else []
        logger.propagate = name == "uvicorn.error"
        logger.setLevel(level.upper())
    # Requests are logged once, by us; uvicorn's own line has their query.
    access = logging.getLogger("uvicorn.access")
    access.handlers, access.propagate = [], False


def log_event(message: str, level: int = logging.INFO, exc_info: Any = None, **fields: Any) -> None:
    """Writes a line of the log.

    Args:
        message: what happened.
        level: of the module `logging`.
        exc_info: as for `logging`; what an exception says isn't written, as it may quote what a
            client sent, but where it came from.
        fields: further names and values; nothing that a client sent but ids and paths.

    Example:
        >>> log_event("model loaded", model="cat", version="1")
    """
    logging.getLogger(LOGGER).log(level, message, exc_info=exc_info, extra={"fields": fields})


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what is standard error at that time, which whoever calls us may exchange."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _frames(record: logging.LogRecord) -> list[str]:
    """Returns the kind of an exception and the places that it passed."""
    kind, _, trace = record.exc_info or (None, None, None)
    places = [f"{one.filename}:{one.lineno} {one.name}" for one in traceback.extract_tb(trace)]
    return [f"  {place}" for place in places] + [f"  {kind.__name__ if kind else 'no exception'}"]


def _printable(text: str) -> str:
    if text.isprintable():  # nearly always, and a server that refuses much writes many lines
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
