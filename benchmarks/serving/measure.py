"""What is measured: each function is a row of the table on the page, or several."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.answers import check_answer
from benchmarks.serving.load import Outcome, arrivals, closed_loop, even_arrivals, open_loop
from benchmarks.serving.servers import HOST, SERVERS, Running, is_ready, request_of, running

Figures = dict[str, Any]

OWN = ("sigcam", "sigcam-batches")
"""Of `SERVERS`: as it is by default, and with one run of several images at a time."""


@dataclass(frozen=True)
class Plan:
    """How long and how much.

    Attributes:
        model: the artifact.
        images: encoded ones, sent in turn.
        environments: folder of the other servers' environments.
        batch: most images in one run, of the other servers.
        clients: requests that are kept under way where the capacity is measured.
        seconds: of each run.
        rounds: of what is compared in alternation.
        soak: seconds of the long run at 80% of the capacity.
        options: further ones of `sigcam serve`.
        say: tells how far it is.
    """

    model: Path
    images: Sequence[bytes]
    environments: Path
    batch: int
    clients: int
    seconds: float
    rounds: int
    soak: float
    options: Sequence[str]
    say: Callable[[str], None]

    def requests(self, name: str = "sigcam") -> list[bytes]:
        """Returns the requests to a server."""
        return [request_of(name, image) for image in self.images]


def bare_backend(plan: Plan, seconds: float) -> dict[int, float]:
    """Measures the backend alone, in a process of its own: seconds a run, by batch size."""
    command = [sys.executable, "-m", "benchmarks.serving.bare", str(plan.model), str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {int(size): value for size, value in json.loads(done.stdout).items()}


def started(name: str, plan: Plan, *more: str) -> AbstractContextManager[Running]:
    """Starts a server; `more` are further options of `sigcam serve`."""
    options = (*plan.options, *more) if SERVERS[name].module is None else ()
    return running(name, plan.model, plan.environments, plan.batch, *options)


def warm(server: Running, plan: Plan, name: str = "sigcam") -> None:
    """Compares an answer, and sends requests until times are those of a server that has run."""
    check_answer(name, server.address, plan.model, plan.images[0])
    found = closed_loop(server.address, plan.requests(name), plan.clients, 3.0)
    if not found.of(200):
        raise RuntimeError(f"{name} answers nothing with 200: {found.counts()}")


def throughput(plan: Plan) -> Figures:
    """Images a second over those of the bare backend at its best batch, in alternation."""
    rates: dict[str, list[float]] = {name: [] for name in OWN}
    best, single = [], []
    for number in range(plan.rounds):
        bare = bare_backend(plan, plan.seconds / 4)
        best.append(max(size / value for size, value in bare.items()))
        single.append(bare[1])
        for name, kept in rates.items():
            with started(name, plan) as server:
                warm(server, plan, name)
                found = closed_loop(server.address, plan.requests(), plan.clients, plan.seconds)
            kept.append(found.rate)
        own = ", ".join(f"{name} {kept[-1]:.1f}" for name, kept in rates.items())
        plan.say(f"round {number + 1}: images/s: {own}, bare backend {best[-1]:.1f}")
    ratios = {name: [one / peak for one, peak in zip(kept, best, strict=True)]
              for name, kept in rates.items()}  # fmt: skip
    return {"rates": rates, "bare_best": best, "bare_single_seconds": single, "ratios": ratios}


def latency(plan: Plan, capacity: float, single: float) -> Figures:
    """p50 and p99 at shares of the capacity, and what happens at ten times as much.

    Args:
        plan: how long.
        capacity: images a second.
        single: seconds of the bare backend's run of one image.
    """
    figures: Figures = {"capacity": capacity, "single": single, "at": {}, "evenly": {}}
    with started("sigcam", plan) as server:
        warm(server, plan)
        for kind, share in (
            ("evenly", 0.7), ("evenly", 0.9),
            ("at", 0.3), ("at", 0.5), ("at", 0.7), ("at", 0.9), ("at", 10.0),
        ):  # fmt: skip
            rate = share * capacity
            times = (even_arrivals(rate, plan.seconds) if kind == "evenly"
                     else arrivals(rate, plan.seconds, seed=1))  # fmt: skip
            found = told(open_loop(server.address, plan.requests(), times))
            figures[kind][str(share)] = found
            plan.say(f"{kind} {share:g} of the capacity: {found}")
            time.sleep(1)
    return figures


def told(found: Outcome) -> Figures:
    """Returns what is kept of a run: counts, and milliseconds."""
    refused = [one.latency for one in found.of(429)]
    late = [one.late for one in found.sent]
    return {
        "counts": found.counts(),
        "rate": round(found.rate, 2),
        "p50_ms": round(1000 * found.quantile(0.5), 2),
        "p99_ms": round(1000 * found.quantile(0.99), 2),
        "refused_p99_ms": round(1000 * float(np.quantile(refused, 0.99)), 2) if refused else None,
        "client_late_p99_ms": round(1000 * float(np.quantile(late, 0.99)), 2) if late else None,
    }


def peers(plan: Plan, names: Sequence[str]) -> Figures:
    """Images a second of each server, in alternation; the answers are compared before."""
    rates: dict[str, list[float]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for number in range(plan.rounds):
        for name in names:
            if name in failed:
                continue
            try:
                with started(name, plan) as server:
                    warm(server, plan, name)
                    found = closed_loop(
                        server.address, plan.requests(name), plan.clients, plan.seconds
                    )
            except (RuntimeError, subprocess.CalledProcessError, OSError) as exc:
                failed[name] = str(exc)[:500]
                plan.say(f"{name}: {failed[name]}")
                continue
            rates[name].append(found.rate)
            plan.say(f"round {number + 1}, {name}: {found.rate:.1f} images/s {found.counts()}")
    return {"rates": rates, "failed": failed}


def soak(plan: Plan, capacity: float) -> Figures:
    """A long run at 80% of the capacity: errors, and how memory changes."""
    samples: list[tuple[float, int]] = []
    with started("sigcam", plan) as server:
        warm(server, plan)
        stop, start = threading.Event(), time.monotonic()

        def sample() -> None:
            while not stop.wait(min(5.0, plan.soak / 40)):
                samples.append((time.monotonic() - start, server.memory()))

        watch = threading.Thread(target=sample)
        watch.start()
        try:
            times = arrivals(0.8 * capacity, plan.soak, seed=1)
            found = open_loop(server.address, plan.requests(), times)
        finally:
            stop.set()
            watch.join()
    return {**told(found), "seconds": plan.soak, **slope(samples)}


def slope(samples: Sequence[tuple[float, int]]) -> Figures:
    """Fits a line to memory over time, the first tenth left out; MiB, and its 95% interval."""
    kept = samples[len(samples) // 10 :]
    times = np.array([at for at, _ in kept]) / 3600
    sizes = np.array([size for _, size in kept]) / 2**20
    # Theil's and Sen's slope: the median over pairs, which single peaks don't move.
    later, sooner = np.triu_indices(len(kept), 1)[::-1]
    each = np.sort((sizes[later] - sizes[sooner]) / (times[later] - times[sooner]))
    count = len(kept)
    spread = 1.96 * np.sqrt(count * (count - 1) * (2 * count + 5) / 18) / 2
    middle = len(each) / 2
    low = each[int(max(0, middle - spread))]
    high = each[int(min(len(each) - 1, middle + spread))]
    return {
        "memory_mib": [round(float(sizes[0]), 1), round(float(sizes[-1]), 1)],
        "slope_mib_an_hour": [round(float(one), 2) for one in (np.median(each), low, high)],
        "samples": len(kept),
    }


def kill(plan: Plan, capacity: float) -> Figures:
    """Kills one of two workers under load: what becomes of requests, and when it is back."""
    with started("sigcam", plan, "--workers", "2") as server:
        warm(server, plan)
        workers = _workers(server)
        timing: Figures = {}

        def act() -> None:
            time.sleep(plan.seconds / 3)
            timing["killed_at"] = time.perf_counter()
            subprocess.run(["kill", "-9", str(workers[-1])], check=True)
            while True:
                now = _workers(server)
                if len(now) == len(workers) and workers[-1] not in now:
                    break
                if time.perf_counter() - timing["killed_at"] > 60:
                    return
                time.sleep(0.02)
            timing["back_after"] = time.perf_counter() - timing["killed_at"]

        killer = threading.Thread(target=act)
        start = time.perf_counter()
        killer.start()
        times = arrivals(0.4 * capacity, plan.seconds, seed=1)
        found = open_loop(server.address, plan.requests(), times)
        killer.join()
        alive = is_ready(f"http://{HOST}:{server.port}/v2/health/ready")
    broken = found.of(0)
    at = timing["killed_at"] - start
    return {
        "counts": found.counts(),
        "broken": len(broken),
        # Under way when the worker died, or sent over a connection of it in that moment.
        "broken_elsewhere": sum(not (one.due - 0.5 <= at <= one.due + one.latency + 0.5)
                                for one in broken),
        "back_seconds": round(timing.get("back_after", float("nan")), 2),
        "ready": alive,
    }  # fmt: skip


def _workers(server: Running) -> list[int]:
    """Lists the processes that listen on the port, by what /proc tells of their sockets."""
    sockets = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == server.port:
            sockets.add(f"socket:[{words[9]}]")
    found = []
    for one in server.processes():
        try:
            links = {str(link.readlink()) for link in Path(f"/proc/{one}/fd").iterdir()}
        except OSError:
            continue
        if links & sockets:
            found.append(one)
    return found


def median(values: Sequence[float]) -> float:
    """Returns the median, NaN of nothing."""
    return statistics.median(values) if values else float("nan")
