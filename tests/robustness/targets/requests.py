"""Requests to `sigcam serve`, damaged: refused with 4xx and the reason, and the server lives."""

from __future__ import annotations

import atexit
import json
import random
from pathlib import Path

import onnx

from sigcam.core.errors import SigcamError
from sigcam.core.spec import ClassSelection
from tests.robustness.requests import Answer, Requests, Sent, damaged, exchange
from tests.robustness.target import Fault, Target
from tests.support.live_server import start_server
from tests.support.tiny import artifact_graph, tiny_spec, write

_GROWTH = 32 << 20
"""Bytes that the server's memory may grow by, where it is least within the last looks: what the
first requests of each kind load and keep."""

_EVERY, _LOOKS = 50, 10
"""Requests between two looks, and how many looks are compared: a body of 10 MB shows in one."""


class RefusedError(SigcamError):
    """The server's answer to a request that it refuses."""


class ServedRequests(Target):
    """Requests of every kind, changed in one way each, to a server of its own for each worker."""

    seconds = 30.0

    def make_corpus(self, folder: Path) -> None:
        for name, mode in (("tiny", "input"), ("top1", "top1")):
            spec = tiny_spec(classes=ClassSelection(mode))
            write(onnx, artifact_graph(onnx, spec), folder / f"{name}.onnx", spec.to_json())

    def open(self, folder: Path) -> None:
        self._requests = Requests()
        self._server = start_server(str(folder), "--body-timeout", "1", "--no-model-control")
        atexit.register(self._server.process.kill)
        self._done = 0
        self._memory: list[int] = []
        self._rng = random.Random(0)
        self._check_alive()

    def damage(self, rng: random.Random, scratch: Path) -> str:
        request, done = damaged(self._requests.valid(rng), rng)
        # What goes to disk is what a fault is shown with; it is read back by nobody else.
        (scratch / "request").write_bytes(request.encoded()[:1_000_000])
        self._request = request
        told = f"{request.method[:10]} {request.path[:60]}: {done}"
        return told.encode("ascii", "backslashreplace").decode()

    def check(self, rng: random.Random, scratch: Path) -> None:
        del rng, scratch
        try:
            answer = exchange(self._server.port, self._request)
        except TimeoutError:
            raise Fault("hang", "no answer after 20 seconds") from None
        finally:
            self._look()
        judge_answer(answer, self._request)

    def _look(self) -> None:
        """Looks whether the server lives, and now and then whether it works and stays small."""
        if self._server.process.poll() is not None:
            raise Fault("dead", f"the server has ended:\n{''.join(self._server.log)[-2000:]}")
        self._done += 1
        if self._done % _EVERY:
            return
        self._check_alive()
        self._memory.append(self._server.memory())
        first, now = min(self._memory[:_LOOKS]), min(self._memory[-_LOOKS:])
        if now > first + _GROWTH:
            raise Fault("memory", f"{first >> 20} MiB at first, {now >> 20} now")

    def _check_alive(self) -> None:
        answer = exchange(self._server.port, self._requests.encoded_as_bytes(self._rng))
        if answer.status != 200:
            raise Fault("broken", f"a valid request got {answer.status}: {answer.body[:300]!r}")


def judge_answer(answer: Answer, request: Sent) -> None:
    """Says what an answer is; returns where it is 200.

    Raises:
        RefusedError: it was refused with a reason.
        Fault: anything else.
    """
    if answer.status == 0:
        if request.keep < 1 or _is_no_http(request):
            raise RefusedError("the connection was closed without an answer")
        raise Fault("silence", "the connection was closed without an answer")
    if answer.status == 503 and b"Request timeout expired" in answer.body:
        raise RefusedError("the request asked for a deadline, and that has passed")
    if answer.status >= 500:
        raise Fault("server", f"{answer.status}: {answer.body[:500]!r}")
    if b"Traceback" in answer.body or b'File "/' in answer.body:
        raise Fault("inside", f"{answer.body[:500]!r}")
    if answer.status in (200, 204):
        return
    if answer.headers.get("content-type", "").startswith("text/plain"):
        # What isn't HTTP is refused before our application sees it.
        raise RefusedError(f"{answer.status}, {answer.body[:100]!r}, by the HTTP parser")
    if request.method == "HEAD":
        raise RefusedError(f"{answer.status}, and no body for a HEAD")
    try:
        error = json.loads(answer.body)
        ((key, sentence),) = error.items()
        assert key == "error" and len(sentence.split()) >= 2
    except (ValueError, AssertionError, AttributeError):
        raise Fault("message", f"{answer.status}: {answer.body[:500]!r}") from None
    raise RefusedError(f"with status {answer.status}: {sentence}")


def _is_no_http(request: Sent) -> bool:
    """Says whether a server may close the connection: what came is no request of HTTP."""
    return not request.method.isalpha() or any(
        name.lower() in ("transfer-encoding", "content-length", "bad name", "content-type",
                         "upgrade", "x-big", "x-0")
        for name, _ in request.headers
    )  # fmt: skip
