"""A request between its arrival and its answer: read, run, written, in the threads that do it.

The server's event loop only carries bytes. A thread of the pool reads the request and prepares its
images; a model's own thread runs them, in batches with those of other requests; a thread of the
pool makes maps and writes the answer.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Generic, TypeVar

from sigcam.core.errors import BackendError
from sigcam.runtime.explanation import Explanation
from sigcam.runtime.model import ModelOutputs
from sigcam.serve.asked import Asked, Reading
from sigcam.serve.batching import Item
from sigcam.serve.inputs import is_encoded
from sigcam.serve.options import ServeOptions
from sigcam.serve.outputs import encoding_time, make_outputs
from sigcam.serve.protocol.errors import RequestError, too_late
from sigcam.serve.protocol.messages import InferRequest, InferResponse
from sigcam.serve.served import Ticket
from sigcam.serve.wishes import timeout_of

__all__ = ["Work"]

T = TypeVar("T")


def _read_before() -> InferRequest:
    raise AssertionError("a request is read once")


class Work(Generic[T]):
    """One request in work. Its future gets the answer, as `write` returned it, or an error.

    Attributes:
        future: of the event loop.
        record: its course.
    """

    def __init__(
        self,
        ticket: Ticket,
        options: ServeOptions,
        pool: Executor,
        read: Callable[[], InferRequest],
        write: Callable[[InferResponse], T],
        waits: Callable[[str, str, int], None],
        *,
        by_json: bool,
    ) -> None:
        """Prepares the work; called in the event loop.

        Args:
            ticket: lets it use the model.
            options: the limits.
            pool: the threads that read and write.
            read: reads the request.
            write: writes the answer.
            waits: is told model, version and 1 when it begins to wait for its first run, and -1
                when it doesn't any more.
            by_json: whether the carrier has no bytes but those asked for as binary data.
        """
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self._loop.create_future()
        self._ticket, self._served = ticket, ticket.served
        self._options, self._pool = options, pool
        self._read_request, self._write, self._by_json = read, write, by_json
        self._deadline = ticket.arrived + options.request_timeout
        self._timer = self._loop.call_at(
            self._loop.time() + self._deadline - time.perf_counter(), self._expire
        )
        self._waits, self._waiting = waits, False
        self._lock = threading.Lock()  # several runs may hand out its images at the same time
        self._over = False
        self._from_floats = False
        self._rows: list[tuple[ModelOutputs, int, list[Explanation] | None] | None] = []
        self._left = 0
        self.record = ticket.record()
        self.record.received = time.perf_counter()

    def start(self) -> None:
        """Begins."""
        self._submit(self._read)

    def cancel(self) -> None:
        """Ends it where nobody waits for the answer; what isn't running won't be run."""
        self._over = True
        self._timer.cancel()
        self._wait(waiting=False)

    @property
    def is_over(self) -> bool:
        """Says whether nobody waits for it any more."""
        return self._over or time.perf_counter() > self._deadline

    def begin(self, time: float) -> None:
        """Notes when the first image is run."""
        self._wait(waiting=False)
        self.record.started = self.record.started or time

    def check(self, done: int, total: int) -> None:
        """Stops a method of several passes where nobody waits any more.

        Raises:
            RequestError: so it is.
        """
        del done, total
        if self.is_over:
            raise too_late()

    def check_row(self, index: int, outputs: ModelOutputs, row: int) -> None:
        """Refuses an image of more classes than may have maps.

        Raises:
            RequestError: as `Asked.check_row`.
        """
        self._asked.check_row(index, outputs, row)

    def in_batch(self, images: int, seconds: float) -> None:
        """Notes a run."""
        with self._lock:
            self.record.batches.append(images)
            self.record.backend += seconds

    def ran(
        self, index: int, outputs: ModelOutputs, row: int, made: list[Explanation] | None = None
    ) -> None:
        """Takes what became of an image; the last one lets the answer be written."""
        with self._lock:
            self._rows[index] = outputs, row, made
            self._left -= 1
            is_last = not self._left
        if is_last:
            self.record.ran = time.perf_counter()
            self._submit(self._finish)

    def fail(self, error: BaseException) -> None:
        """Ends it with an error.

        Where the client sent the network's input as float32, overflow is no fault of the server.
        """
        if self._from_floats and isinstance(error, BackendError):
            error = RequestError(
                "the model gives no finite values for this input; check its values and their scale"
            )
        self._over = True
        self._deliver(error)

    def _wait(self, *, waiting: bool) -> None:
        """Tells whether it waits for its first run, where that has changed."""
        with self._lock:
            if waiting == self._waiting or (waiting and self._over):
                return
            self._waiting = waiting
            self._waits(self.record.model, self.record.version, 1 if waiting else -1)

    def _submit(self, step: Callable[[], None]) -> None:
        def guarded() -> None:
            if self.is_over:
                return
            try:
                step()
            except BaseException as exc:
                self.fail(exc)

        self._pool.submit(guarded)

    def _read(self) -> None:
        """Reads the request, prepares its images and lets them wait for their runs."""
        served, options = self._served, self._options
        request = self._read_request()
        self._read_request = _read_before  # it holds the request's body
        self.record.id = request.id
        self._shorten(timeout_of(request.parameters, options.request_timeout))
        reading = Reading(request, served.model, served.name, options)
        tensor = reading.tensor
        self.record.images = tensor.shape[0]
        self._from_floats = not is_encoded(tensor) and tensor.datatype != "UINT8"
        self._asked = reading.asked(by_json=self._by_json, hold=self._ticket.hold)
        images, calls = self._asked.images, self._asked.calls
        self._rows = [None] * len(images)
        self._left = len(images)
        self.record.decoded = time.perf_counter()
        self._wait(waiting=True)
        served.put(
            [Item(self, index, *pair) for index, pair in enumerate(zip(calls, images, strict=True))]
        )

    _asked: Asked

    def _finish(self) -> None:
        """Makes the maps that are asked for, and writes the answer."""
        begin = time.perf_counter()
        asked = self._asked
        results = [
            asked.result(index, *row) for index, row in enumerate(self._rows) if row is not None
        ]
        encoding_time.seconds = 0.0
        outputs = make_outputs(asked.wanted, results)
        self.record.map_seconds = time.perf_counter() - begin
        self.record.encode_seconds = encoding_time.seconds
        served = self._served
        answer = self._write(InferResponse(served.name, served.version, outputs, asked.id))
        self._deliver(answer)

    def _shorten(self, seconds: float) -> None:
        """Brings the deadline forward, as the request asks for."""
        if seconds < self._options.request_timeout:
            self._deadline = self._ticket.arrived + seconds
            left = self._deadline - time.perf_counter()
            self._loop.call_soon_threadsafe(self._loop.call_later, max(0.0, left), self._expire)

    def _expire(self) -> None:
        """Ends it at its deadline; in the event loop."""
        self._over = True
        self._settle(too_late())

    def _deliver(self, result: T | BaseException) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, result)
        except RuntimeError:  # the loop is closed: the server has ended
            self._over = True

    def _settle(self, result: T | BaseException) -> None:
        self._timer.cancel()
        if self.future.done():
            return
        if isinstance(result, BaseException):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)
