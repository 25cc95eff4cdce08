"""The stages of a request, read off its record."""

from __future__ import annotations

from sigcam.serve.records import Record

STAGES = ("decode", "queue", "backend", "map", "encode")
"""In the order in which a request passes them: from files of images to the network's input; the
wait for the first run; from there to the end of the last one; heatmaps, boxes and overlays; images
as files, and the answer's body."""


def stages_of(record: Record) -> dict[str, tuple[float, float]]:
    """Returns when the stages that a request came through began, and how long they took.

    Args:
        record: of the request; what it didn't reach is 0.

    Returns:
        (begin, seconds) by the names of `STAGES`, on the clock of the record.

    Example:
        >>> stages_of(Record("cat", "1", received=1.0, decoded=1.5, started=1.75))
        {'decode': (1.0, 0.5), 'queue': (1.5, 0.25)}
    """
    found: dict[str, tuple[float, float]] = {}
    if record.received and record.decoded:
        found["decode"] = (record.received, record.decoded - record.received)
    if record.decoded and record.started:
        found["queue"] = (record.decoded, record.started - record.decoded)
    if record.started and record.ran:
        found["backend"] = (record.started, record.ran - record.started)
    if record.ran and record.done and record.status < 400:
        made = record.ran + record.map_seconds - record.encode_seconds
        found["map"] = (record.ran, made - record.ran)
        found["encode"] = (made, max(0.0, record.done - made))
    return found
