"""The record of the request that the current task answers, for whoever tells of its end."""

from __future__ import annotations

from contextvars import ContextVar

from sigcam.serve.records import Record

_ENDED: ContextVar[list[Record] | None] = ContextVar("sigcam_ended", default=None)


class LastRecord:
    """Keeps the record of a request, in the task that answered it.

    Example:
        >>> records = keep_record()
        >>> LastRecord().request_done(Record("cat", "1"))
        >>> records[0].model
        'cat'
    """

    def batch_ran(self, model: str, version: str, images: int, seconds: float) -> None:
        """Keeps nothing of a run: it is of several requests."""

    def request_waits(self, model: str, version: str, change: int) -> None:
        """Keeps nothing of it."""

    def request_done(self, record: Record) -> None:
        """Keeps the record, where the request was for a model."""
        kept = _ENDED.get()
        if kept is not None and record.model:
            kept.append(record)


def keep_record() -> list[Record]:
    """Returns a list that gets the record of the request that this task answers.

    Example:
        >>> keep_record()
        []
    """
    kept: list[Record] = []
    _ENDED.set(kept)
    return kept
