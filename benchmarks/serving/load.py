"""Requests at times that were fixed before, and what became of each of them.

Arrivals are an open loop: a request is sent when its time has come, whether or not the earlier
ones were answered, as the users of a service don't wait for each other. Its latency counts from
the time at which it was due, so that a server which holds everybody up, or a client which is late
itself, can't hide the wait (coordinated omission). `closed_loop` keeps a fixed number of requests
under way instead, which is what a server's capacity is measured with.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

TIMEOUT = 60.0
"""Seconds after which a request counts as lost."""


@dataclass(frozen=True)
class Sent:
    """What became of a request.

    Attributes:
        due: seconds from the start at which it should be sent.
        late: seconds that the client itself was late; counted in `latency`.
        latency: seconds from `due` to the last byte of the answer.
        status: the HTTP status; 0 where the connection broke or `TIMEOUT` passed.
        connection: the number of the connection that it went over.
    """

    due: float
    late: float
    latency: float
    status: int
    connection: int


@dataclass
class Outcome:
    """What became of all requests of a run.

    Attributes:
        sent: the requests, by due time.
        seconds: from the first one's due time to the last answer.
    """

    sent: list[Sent] = field(default_factory=list)
    seconds: float = 0.0

    def of(self, *statuses: int) -> list[Sent]:
        """Returns those with one of the statuses."""
        return [one for one in self.sent if one.status in statuses]

    def counts(self) -> dict[str, int]:
        """Returns how many had each status."""
        return {str(one): count for one, count in Counter(s.status for s in self.sent).items()}

    def quantile(self, share: float, *statuses: int) -> float:
        """Returns the latency in seconds that this share of the requests stayed below.

        Args:
            share: 0 to 1.
            statuses: of the requests that count; 200 when none is given.
        """
        found = [one.latency for one in self.of(*(statuses or (200,)))]
        return float(np.quantile(found, share)) if found else float("nan")

    @property
    def rate(self) -> float:
        """Returns the requests a second that were answered with 200."""
        return len(self.of(200)) / self.seconds if self.seconds else 0.0


class Connection:
    """One connection that is kept open; it carries one request at a time."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def exchange(self, host: str, port: int, request: bytes) -> tuple[int, bytes]:
        """Sends a request; returns the answer's status and body."""
        if self._streams is not None and self._streams[0].at_eof():
            self.close()  # the server has closed it meanwhile, as nothing was asked for long
        if self._streams is None:
            self._streams = await asyncio.open_connection(host, port, limit=1 << 22)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in
                  (line.partition(":") for line in lines[1:])}  # fmt: skip
        body = await _body(reader, fields)
        if fields.get("connection", "").lower() == "close":
            self.close()
        return int(lines[0].split(" ", 2)[1]), body

    def close(self) -> None:
        """Closes it; the next request opens it anew."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _body(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    if fields.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(fields.get("content-length", 0)))
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)


class _Client:
    """Connections to one server: a free one is taken, else a new one is opened."""

    def __init__(self, host: str, port: int, requests: Sequence[bytes]) -> None:
        self.host, self.port, self.requests = host, port, requests
        self.free: list[Connection] = []
        self.opened = 0

    async def send(self, number: int, due: float, start: float) -> Sent:
        began = time.perf_counter()
        connection = self.free.pop() if self.free else self._open()
        try:
            request = self.requests[number % len(self.requests)]
            exchange = connection.exchange(self.host, self.port, request)
            status, _ = await asyncio.wait_for(exchange, TIMEOUT)
            self.free.append(connection)
        except (OSError, ValueError, EOFError, asyncio.TimeoutError):
            connection.close()
            status = 0
        latency = time.perf_counter() - start - due
        return Sent(due, began - start - due, latency, status, connection.number)

    def _open(self) -> Connection:
        self.opened += 1
        return Connection(self.opened)

    def close(self) -> None:
        for one in self.free:
            one.close()


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Returns times in seconds of a Poisson process: many users who know nothing of each other."""
    draw = random.Random(seed)
    times, now = [], draw.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += draw.expovariate(rate)
    return times


def even_arrivals(rate: float, seconds: float) -> list[float]:
    """Returns times in seconds at equal distances: a camera, or what goes through a belt."""
    return [number / rate for number in range(int(rate * seconds))]


def open_loop(
    address: tuple[str, int], requests: Sequence[bytes], times: Sequence[float]
) -> Outcome:
    """Sends requests at times that are given.

    Args:
        address: host and port.
        requests: whole HTTP requests, taken in turn.
        times: of `arrivals` or `even_arrivals`.
    """
    # Collections of garbage would stop the client for some 0.2 s, which is no fault of the server.
    gc.disable()
    try:
        return asyncio.run(_open_loop(address, requests, times))
    finally:
        gc.enable()


async def _open_loop(
    address: tuple[str, int], requests: Sequence[bytes], times: Sequence[float]
) -> Outcome:
    client = _Client(*address, requests)
    start = time.perf_counter()
    tasks = []
    for number, due in enumerate(times):
        wait = due - (time.perf_counter() - start)
        if wait > 0:
            await asyncio.sleep(wait)
        elif number % 64 == 0:
            await asyncio.sleep(0)  # a client that is late lets the answers in all the same
        tasks.append(asyncio.create_task(client.send(number, due, start)))
    sent = await asyncio.gather(*tasks)
    client.close()
    return Outcome(list(sent), time.perf_counter() - start)


def closed_loop(
    address: tuple[str, int], requests: Sequence[bytes], clients: int, seconds: float
) -> Outcome:
    """Keeps as many requests under way as there are clients, for so many seconds."""
    return asyncio.run(_closed_loop(address, requests, clients, seconds))


async def _closed_loop(
    address: tuple[str, int], requests: Sequence[bytes], clients: int, seconds: float
) -> Outcome:
    client = _Client(*address, requests)
    start = time.perf_counter()
    outcome = Outcome()

    async def go(number: int) -> None:
        while (now := time.perf_counter() - start) < seconds:
            outcome.sent.append(await client.send(number, now, start))
            number += clients

    await asyncio.gather(*(go(number) for number in range(clients)))
    client.close()
    outcome.seconds = time.perf_counter() - start
    return outcome
