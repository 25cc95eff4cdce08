"""One connection: uvicorn's for HTTP/1.1, which also ends those that never ask or never read.

It is the one on h11, which refuses heads of more than 64 KiB by itself. httptools would take 0.1
to 0.2 ms less for a request, out of some 30 ms that an image takes, and has no such limit.
"""

from __future__ import annotations

import asyncio
import socket

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Connection"]


class Connection(H11Protocol):
    """Closes itself when nothing goes on for the keep-alive time.

    That is: the head of a request doesn't come whole, or of an answer that waits to be sent nothing
    is taken. uvicorn itself counts between requests only: who connects and says nothing, or a byte
    now and then, would stay for ever, and who doesn't read would keep his answer in memory.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first request."""
        super().connection_made(transport)
        # Head and body of an answer are written one by one. By Nagle's algorithm the body would
        # wait until the client has acknowledged the head, which it may put off for 40 ms. asyncio
        # sees to that only where the listening socket was made with TCP's number.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Takes what came, and waits for the rest of a head."""
        super().data_received(data)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends all waiting."""
        super().connection_lost(exc)
        self._end_waiting()
        self.resume_writing()

    def pause_writing(self) -> None:
        """Begins to wait for the client to take what was written."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

    def resume_writing(self) -> None:
        """Ends that, as some of it was taken."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

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
