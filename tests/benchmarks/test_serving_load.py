"""The load that benchmarks/serving puts on servers, against one whose times are known."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from benchmarks.serving.load import Connection, arrivals, closed_loop, even_arrivals, open_loop
from benchmarks.serving.measure import slope
from benchmarks.serving.report import BEGIN, END, write_part

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@contextmanager
def server(answer):
    """A server that answers request n with the status `await answer(n)`; None hangs up."""
    ready, stop = threading.Event(), threading.Event()
    found = {}

    async def handle(reader, writer):
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                found["count"] = found.get("count", 0) + 1
                status = await answer(found["count"])
                if status is None:
                    break
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nok" % status)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def serve():
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as made:
            found["port"] = made.sockets[0].getsockname()[1]
            ready.set()
            while not stop.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait(10)
    try:
        yield "127.0.0.1", found["port"]
    finally:
        stop.set()
        thread.join(10)


def test_arrivals_are_as_many_as_asked_for_and_follow_from_the_seed() -> None:
    times = arrivals(200, 20, 1)
    assert times == sorted(times) == arrivals(200, 20, 1)
    assert len(times) == pytest.approx(4000, rel=0.1)
    assert times != arrivals(200, 20, 2)
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # as Poisson's are


def test_even_arrivals() -> None:
    assert even_arrivals(4, 1.0) == [0.0, 0.25, 0.5, 0.75]


def test_a_wait_is_not_hidden() -> None:
    """All answers of half a second come at its end: those who came late in it waited less."""
    begin = time.monotonic()

    async def stalls(_):
        await asyncio.sleep(max(0.0, 0.7 - (time.monotonic() - begin)))
        return 200

    with server(stalls) as address:
        begin = time.monotonic()
        found = open_loop(address, [REQUEST], arrivals(100, 1.0, 1))
    assert found.counts() == {"200": len(arrivals(100, 1.0, 1))}
    early = [one.latency for one in found.sent if one.due < 0.1]
    later = [one.latency for one in found.sent if one.due > 0.75]
    assert min(early) > 0.5
    assert np.median(later) < 0.15
    assert found.quantile(0.99) > 0.5


def test_statuses_and_broken_connections_are_told_apart() -> None:
    async def mixed(number):
        return {0: None, 1: 429}.get(number % 4, 200)

    with server(mixed) as address:
        found = open_loop(address, [REQUEST], arrivals(100, 0.5, 1))
    counts = found.counts()
    assert set(counts) == {"0", "200", "429"}
    assert sum(counts.values()) == len(found.sent) == len(arrivals(100, 0.5, 1))
    assert found.rate == pytest.approx(counts["200"] / found.seconds)


def test_a_closed_loop_keeps_so_many_under_way() -> None:
    async def takes_its_time(_):
        await asyncio.sleep(0.05)
        return 200

    with server(takes_its_time) as address:
        found = closed_loop(address, [REQUEST], 4, 0.6)
    assert {one.connection for one in found.sent} == {1, 2, 3, 4}
    assert found.rate == pytest.approx(4 / 0.05, rel=0.4)


def test_the_slope_of_memory() -> None:
    times = np.arange(0, 3600, 10.0)
    flat = [(at, int(2**30 + 2**20 * np.sin(at))) for at in times]
    middle, low, high = slope(flat)["slope_mib_an_hour"]
    assert low <= 0 <= high
    assert abs(middle) < 0.2
    leak = [(at, size + int(at / 3600 * 50 * 2**20)) for at, size in flat]
    middle, low, high = slope(leak)["slope_mib_an_hour"]
    assert middle == pytest.approx(50, rel=0.05)
    assert low > 0


def test_a_page_without_the_marks_is_refused() -> None:
    assert write_part(f"a\n{BEGIN}\nold\n{END}\nb", {}, "x.json").startswith(f"a\n{BEGIN}\n")
    with pytest.raises(ValueError, match="lacks"):
        write_part("a page", {}, "x.json")


def test_a_connection_that_the_server_closed_meanwhile_is_opened_anew() -> None:
    async def run() -> list[int]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            writer.close()  # without having said so

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        connection, found = Connection(1), []
        for _ in range(3):
            found.append((await connection.exchange("127.0.0.1", port, REQUEST))[0])
            await asyncio.sleep(0.1)
        connection.close()
        server.close()
        await asyncio.sleep(0.1)
        return found

    assert asyncio.run(run()) == [200, 200, 200]
