"""A full queue, deadlines, clients that go, and batches of several requests."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sigcam.core.errors import BackendError
from sigcam.serve.options import ServeOptions
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import InferRequest, InputTensor, RequestedOutput
from tests.serve.requests import INFER, body, encoded, reason, tensors


class Gate:
    """Stands before a model's runs: notes the sizes of the batches and holds them back."""

    def __init__(self, served, monkeypatch):
        self.sizes = []
        self.open = threading.Event()
        self.changed = threading.Condition()
        self.fail_on = None
        run = served.model.run

        def gated(batch, *arguments, **more):
            with self.changed:
                self.sizes.append(len(batch))
                self.changed.notify_all()
            assert self.open.wait(10)
            if self.fail_on is not None and any(np.array_equal(x, self.fail_on) for x in batch):
                raise BackendError("the logits are not finite")
            return run(batch, *arguments, **more)

        monkeypatch.setattr(served.model, "run", gated)

    def wait(self, runs):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.sizes) >= runs, 10)


@pytest.fixture
def crowd():
    with ThreadPoolExecutor(32) as pool:
        yield pool


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_requests_share_batches_and_each_gets_its_own_answer(client, crowd, monkeypatch, image):
    import cv2

    served = client.service.models.get("tiny")
    gate = Gate(served, monkeypatch)
    colours = {name: np.zeros((40, 40, 3), np.uint8) for name in ("red", "green", "blue")}
    for index, name in enumerate(colours):
        colours[name][:, :, 2 - index] = 255
    files = {name: cv2.imencode(".png", one)[1].tobytes() for name, one in colours.items()}

    def ask(name, **parameters):
        asked = body(encoded(files[name]), outputs=["labels", "logits"], parameters=parameters)
        return crowd.submit(client.post, INFER, json=asked)

    first = ask("red")
    gate.wait(1)
    names = [*colours] * 2
    answers = [ask(name) for name in names]
    named = ask("red", classes="Warm")  # one class too, so it fits into the same batch
    two = ask("blue", top_k=2)
    until(lambda: served.images == 9)
    until(lambda: served._lanes["one pass"].waiting == 8)
    gate.open.set()
    assert tensors(first.result())["labels"] == ["red"]
    for name, answer in zip(names, answers, strict=True):
        assert tensors(answer.result())["labels"] == [name]
    assert tensors(named.result())["labels"] == ["Warm"]
    assert tensors(two.result())["labels"][0] == "blue"
    assert sorted(gate.sizes) == [1, 1, 7]
    assert served.images == 0
    told = client.get("/v2/models/tiny/stats").json()["model_stats"][0]
    assert (told["inference_count"], told["execution_count"]) == (9, 3)


def test_parallel_runs(serve, artifact, crowd, png):
    """Images of one request that are run at the same time come together in their order."""
    options = ServeOptions(batch_size=1, parallel_runs=3, queue_images=160)
    client = serve(f"tiny={artifact}", options=options)
    ids = {"name": "class_ids", "datatype": "INT64", "shape": [8, 1], "data": [0, 1, 2, 3] * 2}
    asked = body(encoded(*[png] * 8), ids, outputs=["labels"])
    answers = [crowd.submit(client.post, INFER, json=asked) for _ in range(20)]
    for one in answers:
        assert tensors(one.result())["labels"] == ["red", "green", "blue", "Warm"] * 2
    options = client.service.models.get("tiny").model.backend._session.get_session_options()
    assert options.intra_op_num_threads >= 1


def test_a_full_queue_refuses_at_once_and_takes_again(serve, artifact, crowd, monkeypatch, png):
    client = serve(f"tiny={artifact}", options=ServeOptions(batch_size=2, queue_images=3,
                                                            request_images=3))  # fmt: skip
    served = client.service.models.get("tiny")
    gate = Gate(served, monkeypatch)
    asked = body(encoded(png), outputs=["labels"])
    answers = [crowd.submit(client.post, INFER, json=asked) for _ in range(3)]
    until(lambda: served.images == 3)
    begin = time.perf_counter()
    response = client.post(INFER, json=asked)
    assert time.perf_counter() - begin < 1
    assert "queue of model 'tiny' is full" in reason(response, 429)
    assert int(response.headers["retry-after"]) >= 1
    gate.open.set()
    assert all(one.result().status_code == 200 for one in answers)
    assert client.post(INFER, json=body(encoded(png, png, png))).status_code == 200
    gate.open.clear()
    lone = crowd.submit(client.post, INFER, json=asked)
    until(lambda: served.images == 1)
    reason(client.post(INFER, json=body(encoded(png, png, png))), 429)
    gate.open.set()
    assert lone.result().status_code == 200
    until(lambda: served.images == 0)


def test_a_request_that_is_over_holds_no_places(client):
    served = client.service.models.get("tiny")
    ticket = served.admit()
    ticket.hold(5)
    assert (served.images, served.tickets) == (5, 1)
    ticket.close()
    with pytest.raises(RequestError):
        ticket.hold(6)  # its images were counted after its client had gone
    ticket.close()
    assert (served.images, served.tickets) == (0, 0)


def test_deadlines(client, crowd, monkeypatch, png):
    served = client.service.models.get("tiny")
    gate = Gate(served, monkeypatch)
    slow = crowd.submit(client.post, INFER, json=body(encoded(png), outputs=["labels"]))
    gate.wait(1)
    asked = body(encoded(png), parameters={"timeout": 100_000})
    begin = time.perf_counter()
    assert reason(client.post(INFER, json=asked), 503) == "Request timeout expired"
    assert 0.09 < time.perf_counter() - begin < 2
    gate.open.set()
    assert slow.result().status_code == 200
    assert gate.sizes == [1]  # what was late has never been run
    until(lambda: served.images == 0)


def test_the_servers_own_deadline(serve, artifact, monkeypatch, png):
    client = serve(f"tiny={artifact}", options=ServeOptions(request_timeout=0.2))
    gate = Gate(client.service.models.get("tiny"), monkeypatch)
    asked = body(encoded(png), parameters={"timeout": 60_000_000})
    assert reason(client.post(INFER, json=asked), 503) == "Request timeout expired"
    gate.open.set()


def test_what_overflows_costs_the_others_of_its_batch_nothing(client, crowd, monkeypatch, png):
    served = client.service.models.get("tiny")
    gate = Gate(served, monkeypatch)
    bad = np.full((1, 56, 56, 3), 7, np.uint8)
    gate.fail_on = bad[0]
    first = crowd.submit(client.post, INFER, json=body(encoded(png)))
    gate.wait(1)
    given = {"name": "image", "datatype": "UINT8", "shape": bad.shape, "data": bad.tolist()}
    answers = [
        crowd.submit(client.post, INFER, json=body(one))
        for one in (encoded(png), given, encoded(png))
    ]
    until(lambda: served._lanes["one pass"].waiting == 3)
    gate.open.set()
    assert first.result().status_code == 200
    assert [one.result().status_code for one in answers] == [200, 500, 200]


def _request(png):
    return InferRequest(
        (InputTensor("encoded_image", "BYTES", (1,), [png]),), (RequestedOutput("labels"),)
    )


def test_a_request_whose_client_has_gone_is_not_run(client, monkeypatch, png):
    service = client.service
    served = service.models.get("tiny")
    gate = Gate(served, monkeypatch)

    async def run():
        gone = asyncio.Event()

        def ask(**more):
            ticket = service.admit("tiny")

            async def answer():
                with ticket:
                    return await service.infer(
                        ticket, lambda: _request(png), lambda made: made, **more
                    )

            return asyncio.ensure_future(answer())

        first = ask()
        await asyncio.to_thread(gate.wait, 1)
        left, cancelled = ask(gone=gone.wait), ask()
        await asyncio.to_thread(until, lambda: served._lanes["one pass"].waiting == 2)
        gone.set()
        cancelled.cancel()
        with pytest.raises(RequestError, match="gone"):
            await left
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        gate.open.set()
        made = await first
        assert made.outputs[0].data == [b"red"]

    asyncio.run(run())
    until(lambda: served._lanes["one pass"].waiting == 0)
    assert gate.sizes == [1]
    assert served.images == 0


def test_many_passes_stop_when_nobody_waits(serve, make_artifact, png):
    client = serve(f"tiny={make_artifact(emit=('features',))}",
                   options=ServeOptions(max_passes=1_000_000))  # fmt: skip
    asked = body(encoded(png), parameters={"method": "rise", "masks": 500_000, "timeout": 200_000})
    begin = time.perf_counter()
    assert reason(client.post(INFER, json=asked), 503) == "Request timeout expired"
    quick = body(encoded(png), parameters={"method": "rise", "masks": 2})
    assert client.post(INFER, json=quick).status_code == 200
    assert time.perf_counter() - begin < 10


def test_observers_are_told_of_every_request(serve, artifact, png):
    class Observer:
        def __init__(self):
            self.records, self.runs, self.waits = [], [], []

        def batch_ran(self, *told):
            self.runs.append(told)

        def request_waits(self, *told):
            self.waits.append(told)

        def request_done(self, record):
            self.records.append(record)

    observer = Observer()
    client = serve(f"tiny={artifact}", observers=[observer])
    client.post(INFER, json=body(encoded(png, png), id="7"))
    client.post(INFER, json=body(encoded(b"bad")))
    client.post("/v2/models/none/infer", json={})
    client.post(INFER, content=b"x", headers={"Content-Encoding": "br"})
    good, bad, unknown, compressed = observer.records
    assert (unknown.model, unknown.status, compressed.model, compressed.status) == (
        "", 404, "tiny", 415,
    )  # fmt: skip
    assert (good.model, good.version, good.id, good.images, good.status) == (
        "tiny", "1", "7", 2, 200,
    )  # fmt: skip
    times = [good.arrived, good.received, good.decoded, good.started, good.ran, good.done]
    assert times == sorted(times)
    assert good.batches == [2]
    assert observer.runs[0][:3] == ("tiny", "1", 2)
    assert observer.waits == [("tiny", "1", 1), ("tiny", "1", -1)]  # the bad one never waited
    assert 0 < good.backend < good.seconds
    assert bad.status == 400
    assert "image 0" in bad.error
