"""One connection: uvicorn's for HTTP/1.1, which also ends those that never ask or never read.

It is the one on httptools, which takes half the time of the one on h11 for a request that is
refused, and less still for its body. What h11 refuses by itself is refused here: heads without an
end, and requests that don't name one host.
"""

from __future__ import annotations

import asyncio
import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Connection"]

_LONGEST_HEAD = 65536
"""Bytes of a request's address and headers, those after its body included."""


class Connection(HttpToolsProtocol):
    """Closes itself when nothing goes on for the keep-alive time.

    That is: the head of a request doesn't come whole, or of an answer that waits to be sent nothing
    is taken. uvicorn itself counts between requests only: who connects and says nothing, or a byte
    now and then, would stay for ever, and who doesn't read would keep his answer in memory.

    Requests that HTTP/1.1 forbids are answered with 400, and the connection is closed.
    """

    _head = 0
    """Bytes of the request's address and headers, as far as they are known."""
    _unread = 0
    """Bytes in which the parser has found nothing yet: a header, or what stands between the chunks
    of a body, which it keeps until it is whole."""
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
        self._unread += len(data)
        super().data_received(data)
        if self._unread > _LONGEST_HEAD and not self.transport.is_closing():
            self.send_400_response("Invalid HTTP request received.")
        self._wait_for_head()

    def on_message_begin(self) -> None:
        """Begins a request."""
        self._head = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Takes the next bytes of its address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header of it."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begins to answer it.

        Raises:
            ValueError: it doesn't name one host, as HTTP/1.1 wants; the caller refuses it.
        """
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            raise ValueError("no host, or several")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Takes the next bytes of its body."""
        self._unread = 0
        super().on_body(body)

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

    def _count(self, size: int) -> None:
        """Counts bytes of a head.

        Raises:
            ValueError: there are too many; the caller refuses the request.
        """
        self._unread = 0
        self._head += size
        if self._head > _LONGEST_HEAD:
            raise ValueError("the head is too long")

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
