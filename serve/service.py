"""What a server does, whatever carries its requests: HTTP and gRPC both come here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sigcam.core.cpus import thread_limit, usable_cpus
from sigcam.core.errors import ImageError, SigcamError, UsageError
from sigcam.images.decode import limit_opencv
from sigcam.serve.models import Models
from sigcam.serve.options import ServeOptions
from sigcam.serve.protocol.errors import RequestError, client_has_gone
from sigcam.serve.protocol.messages import InferRequest, InferResponse
from sigcam.serve.records import Observer, Record
from sigcam.serve.repository import Repository
from sigcam.serve.served import BackendChoice, Ticket
from sigcam.serve.statistics import Statistics
from sigcam.serve.work import Work

__all__ = ["Service", "refusal"]

T = TypeVar("T")

_log = logging.getLogger("sigcam.serve")


class Service:
    """Models, the threads that read and write, and the rules for who may come in.

    Attributes:
        options: limits and habits.
        models: by name and version.
        statistics: of the models, from the beginning.
        draining: whether the server was told to end: it is no longer ready.
        closing: whether no further request is let in.
        load: loads a model by name, and `unload` unloads it: here, or in all processes of a
            server that has several.
    """

    def __init__(
        self,
        repository: Repository,
        choice: BackendChoice | None = None,
        options: ServeOptions | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        """Loads nothing yet: call `models.load_all()`.

        Args:
            repository: where the models lie.
            choice: how they are opened; the default backend when None.
            options: limits and habits; the defaults when None.
            observers: are told what happens.
        """
        limit_opencv()
        self.options = options or ServeOptions()
        self.statistics = Statistics()
        self.observers: list[Observer] = [self.statistics, *observers]
        self.models = Models(repository, choice or BackendChoice(), self.options, self._batch_ran)
        self._pool = ThreadPoolExecutor(max(2, thread_limit() or usable_cpus()), "sigcam-serve")
        self.load: Callable[[str], None] = self.models.load
        self.unload: Callable[[str], None] = self.models.unload
        self.draining = False
        self.closing = False

    @property
    def ready(self) -> bool:
        """Says whether requests should come: all models are loaded, and it wasn't told to end."""
        return self.models.ready and not self.draining

    @property
    def running(self) -> int:
        """Counts the requests that were let in and aren't answered yet."""
        return sum(one.tickets for one in self.models.all())

    def admit(self, name: str, version: str | None = None) -> Ticket:
        """Lets a request in, before its body is read.

        Returns:
            A context manager; whoever holds it keeps the model loaded.

        Raises:
            RequestError: an unknown model, a full queue, or a server that is about to end.
        """
        arrived = time.perf_counter()
        served = None
        try:
            if self.closing:
                raise RequestError("the server is about to end; ask another one", 503, 1)
            served = self.models.get(name, version)
            return served.admit()
        except RequestError as exc:
            known = ("", "") if served is None else (served.name, served.version)
            self.refused(Record(*known, arrived=arrived), exc)
            raise

    def refused(self, record: Record, error: RequestError) -> None:
        """Tells the observers of a request that never came to be worked on.

        Args:
            record: what is known of it. Names of models that aren't served are left out: clients
                can think of any number of them.
            error: what its client is told.
        """
        _note(record, error)
        self.tell(record)

    async def infer(
        self,
        ticket: Ticket,
        read: Callable[[], InferRequest],
        write: Callable[[InferResponse], T],
        gone: Callable[[], Awaitable[None]] | None = None,
        *,
        by_json: bool = False,
    ) -> T:
        """Answers a request.

        Args:
            ticket: from `admit`, held until this returns.
            read: reads the request; called in a thread.
            write: writes the answer; called in a thread.
            gone: returns when the client has gone; None where that is told by cancelling.
            by_json: whether outputs that aren't asked for as binary data go as JSON.

        Raises:
            RequestError: why it isn't answered; every error comes as one.
        """
        work = Work(ticket, self.options, self._pool, read, write, self._waits, by_json=by_json)
        try:
            work.start()
            return await _first(work, gone)
        except asyncio.CancelledError:
            _note(work.record, client_has_gone())
            raise
        except BaseException as exc:
            error = refusal(exc)
            _note(work.record, error)
            raise error from exc
        finally:
            work.cancel()
            self.tell(work.record)

    def tell(self, record: Record) -> None:
        """Tells the observers of a request that is over."""
        record.done = time.perf_counter()
        for one in self.observers:
            one.request_done(record)

    def close(self) -> None:
        """Ends the threads and frees the models."""
        self.closing = self.draining = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.models.close()

    def _waits(self, model: str, version: str, change: int) -> None:
        for one in self.observers:
            one.request_waits(model, version, change)

    def _batch_ran(self, model: str, version: str, images: int, seconds: float) -> None:
        for one in self.observers:
            one.batch_ran(model, version, images, seconds)


async def _first(work: Work[T], gone: Callable[[], Awaitable[None]] | None) -> T:
    """Waits for the answer, or until the client has gone."""
    if gone is None:
        return await work.future
    watch: asyncio.Future[Any] = asyncio.ensure_future(gone())
    answer: asyncio.Future[Any] = work.future
    try:
        await asyncio.wait({answer, watch}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watch.cancel()
    if not work.future.done():
        raise client_has_gone()
    return work.future.result()


def refusal(error: BaseException) -> RequestError:
    """Returns the error that a client is told: never more of the inside than a sentence.

    Example:
        >>> refusal(UsageError("top_k must be at least 1, got 0")).status
        400
        >>> str(refusal(KeyError("secret")))
        'the server failed; its log says why'
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, (UsageError, ImageError)):
        return RequestError(str(error))
    if isinstance(error, MemoryError):
        return RequestError("the server has too little memory for this request now", 503, 1)
    _log.error("a request failed", exc_info=error)
    if isinstance(error, SigcamError):
        return RequestError(str(error), 500)
    return RequestError("the server failed; its log says why", 500)


def _note(record: Record, error: RequestError) -> None:
    record.status, record.error = error.status, str(error)
