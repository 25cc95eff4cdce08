"""Several callers at once on a model of OpenVINO, and its two modes."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from sigcam.core.errors import BackendError
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.backends.openvino.backend import OpenVinoBackend
from sigcam.runtime.backends.openvino.requests import Requests
from tests.support.openvino_cases import feeds_of, opened, same

pytest.importorskip("openvino")

MODES = ["latency", "throughput"]


@pytest.mark.parametrize("mode", MODES)
def test_many_threads_share_a_model(make_artifact, mode):
    backend = opened(make_artifact(), mode=mode)
    calls = [feeds_of(batch, k) for batch in (1, 2, 5) for k in (1, 3)]
    alone = [backend.infer(feeds) for feeds in calls]
    gate = threading.Barrier(8)

    def work(thread):
        gate.wait()
        which = [(thread + i) % len(calls) for i in range(40)]
        return [(one, backend.infer(calls[one])) for one in which]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    for one, outputs in (pair for pairs in found for pair in pairs):
        same(outputs, alone[one])  # after all of them: none was overwritten
    assert backend._requests._idle.qsize() == 16  # all of them came back


@pytest.mark.parametrize("mode", MODES)
def test_requests_are_made_before_the_first_run(make_artifact, mode, monkeypatch):
    """OpenVINO can't make one while another one runs."""
    backend = opened(make_artifact(), mode=mode)
    monkeypatch.delattr(type(backend._requests._compiled), "create_infer_request")
    wanted = {batch: feeds_of(batch, 2) for batch in (1, 3)}
    with ThreadPoolExecutor(12) as pool:
        for outputs in pool.map(lambda i: backend.infer(wanted[1 + i % 2 * 2]), range(60)):
            assert outputs


def test_a_call_of_several_requests_is_not_overtaken():
    """It gets the next ones that are free, though others that want one each come all the time."""
    compiled = FakeCompiled(parts=2)
    requests = Requests(compiled)
    taken = [requests._idle.get() for _ in range(requests._idle.qsize())]
    order = []

    def call(rows):
        requests.run([np.zeros(rows)], [0])
        order.append(rows)

    threads = [threading.Thread(target=call, args=(rows,)) for rows in (2, 1, 1)]
    for one in threads:
        one.start()
        time.sleep(0.05)
    requests._idle.put(taken.pop())
    time.sleep(0.1)
    assert order == []  # none of those behind it took the one that is free
    for one in taken:
        requests._idle.put(one)
    for one in threads:
        one.join(10)
    assert sorted(order) == [1, 1, 2]


def test_throughput_divides_the_threads(make_artifact):
    backend = OpenVinoBackend.open(make_artifact(), BackendOptions(mode="throughput"))
    compiled = backend._requests._compiled
    streams = compiled.get_property("NUM_STREAMS")
    assert streams == compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    assert 1 <= streams <= compiled.get_property("INFERENCE_NUM_THREADS")


@pytest.mark.parametrize("mode", MODES)
def test_threads_are_counted_and_free_to_move(make_artifact, mode):
    compiled = opened(make_artifact(), mode=mode)._requests._compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


@pytest.mark.parametrize("mode", MODES)
def test_closed_while_it_is_used(make_artifact, mode):
    backend = opened(make_artifact(), mode=mode)
    feeds = feeds_of(2, 2)
    wanted = backend.infer(feeds)
    started = threading.Barrier(5)

    def work(_):
        started.wait()
        done = 0
        with pytest.raises(BackendError, match="closed; load"):
            while True:
                same(backend.infer(feeds), wanted)
                done += 1
        return done

    with ThreadPoolExecutor(4) as pool:
        found = pool.map(work, range(4))
        started.wait()
        while backend._requests._idle.qsize() == 16:
            pass  # until one is in use
        backend.close()
        backend.close()
        assert all(done >= 0 for done in found)


class FakeRequest:
    """Stands for an infer request whose run can be made to fail or be interrupted."""

    def __init__(self, failing):
        self.failing = failing
        self.waits = 0
        self.asked = []
        self.goes_on = False

    def set_input_tensor(self, index, tensor):
        assert not self.goes_on
        self.tensor = tensor

    def start_async(self):
        self.goes_on = True

    def wait(self):
        self.waits += 1
        error = self.failing.pop() if self.failing else None
        self.goes_on = isinstance(error, KeyboardInterrupt)
        if error:
            raise error

    def get_output_tensor(self, index):
        self.asked.append(index)
        return SimpleNamespace(data=self.tensor.data)


class FakeCompiled:
    def __init__(self, failing=(), parts=1):
        self.made = []
        self.failing = list(failing)
        self.parts = parts

    def get_property(self, name):
        if name == "PERFORMANCE_HINT":
            return "LATENCY" if self.parts == 1 else "THROUGHPUT"
        return self.parts

    def create_infer_request(self):
        self.made.append(FakeRequest(self.failing))
        return self.made[-1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_request_that_failed_is_used_again_when_its_run_is_over(error):
    compiled = FakeCompiled([error()])
    requests = Requests(compiled)
    with pytest.raises(error):
        requests.run([np.zeros(3)], [0])
    assert [one.waits for one in compiled.made] == [1 if error is RuntimeError else 2, *[0] * 15]
    for _ in range(32):
        [got] = requests.run([np.ones(3)], [0])
        np.testing.assert_array_equal(got, np.ones(3))
    assert not any(one.goes_on for one in compiled.made)


def test_a_run_that_nobody_waited_for_is_waited_for_before_the_next_one():
    compiled = FakeCompiled([KeyboardInterrupt(), KeyboardInterrupt()])
    requests = Requests(compiled)
    with pytest.raises(KeyboardInterrupt):
        requests.run([np.zeros(3)], [0])
    assert compiled.made[0].goes_on
    for _ in range(16):
        requests.run([np.ones(3)], [0])
    assert not compiled.made[0].goes_on


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_throughput_divides_a_batch(rows):
    compiled = FakeCompiled(parts=3)
    requests = Requests(compiled)
    array = np.arange(2.0 * rows).reshape(rows, 2)
    for _ in range(2):
        [got] = requests.run([array], [5])
        np.testing.assert_array_equal(got, array)
        assert not np.shares_memory(got, array)
    used = [one for one in compiled.made if one.asked]
    assert len(used) == 2 * min(3, rows)
    assert all(one.asked == [5] for one in used)  # no output that isn't wanted
    sizes = [len(one.tensor.data) for one in used]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("mode", MODES)
def test_inputs_of_different_batches_are_an_error(make_artifact, mode):
    backend = OpenVinoBackend.open(make_artifact(), BackendOptions(mode=mode))
    feeds = {"image": feeds_of(4, 2)["image"], "class_ids": feeds_of(3, 2)["class_ids"]}
    with pytest.raises(BackendError, match="failed while running"):
        backend.infer(feeds)
