"""One connection: uvicorn's for HTTP/1.1, which also closes those that never ask anything.

It is the one on h11, which refuses heads of more than 64 KiB by itself. httptools would take 0.1
to 0.2 ms less for a request, out of some 30 ms that an image takes, and has no such limit.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Connection"]


class Connection(H11Protocol):
    """Closes itself when the head of a request doesn't come within the keep-alive time.

    uvicorn itself begins to count after the first answer only: who connects and says nothing, or a
    byte now and then, would stay for ever.
    """

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Takes what came, and waits for the rest of a head."""
        super().data_received(data)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends all waiting."""
        super().connection_lost(exc)
        self._end_waiting()

    def _wait_for_head(self) -> None:
        """Begins to wait where no request is being answered, and ends that where one is."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._end_waiting()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def _end_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
