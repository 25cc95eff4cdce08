"""Several callers of one engine: each gets a stream, contexts and memory of its own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sigcam.core.errors import BackendError
from sigcam.core.types import Array
from sigcam.kernels import driver
from sigcam.kernels.errors import KernelError
from sigcam.runtime.backends.cuda.heatmaps import HeatmapMaker
from sigcam.runtime.backends.cuda.source import DeviceTensor
from sigcam.runtime.backends.tensorrt.engine import Engine
from sigcam.runtime.backends.tensorrt.executor import Call, Executor, Results

if TYPE_CHECKING:
    from sigcam.kernels.clamp_combine import ClampCombine

MAX_WORKERS = 4
"""Most calls at once; further ones wait. Each has the engine's working memory once."""

MAX_GRAPHS = 2
"""Most CUDA graphs of a worker; each has an execution context, inputs and outputs of its own."""

_REMEMBERED = 32
"""How many kinds of calls a worker remembers, to see one come again.

It is also the number of calls after which a graph that none of them used may be given up.
"""


class Worker:
    """A stream with one executor for any call, and others for calls that came again.

    All of them follow each other on the stream, so they share the memory for the engine's
    intermediate values, and the memory for heatmaps.

    The first call of its kind (shapes, outputs) runs in the executor for any call. The second one
    runs in an executor of its own and is then captured there; from the third on, the graph is
    launched, wherever the images lie. Calls for images on the device are kinds of their own, whose
    graphs hold the engine alone: copies from addresses that change, and the waits between this
    stream and the caller's, stay outside. Where all graphs are in use, further kinds stay without
    one: making an executor costs far more than a graph saves, so kinds that take turns must not
    push each other out.
    """

    def __init__(
        self,
        engine: Engine,
        kernel: ClampCombine | None,
        *,
        shared: bool = False,
    ) -> None:
        self._engine, self._shared = engine, shared
        self._stream = driver.Stream()
        with ExitStack() as stack:
            stack.callback(self._stream.close)
            self._memory = driver.DeviceBuffer(max(1, engine.memory))
            stack.callback(self._memory.close)
            self._heatmaps = None if kernel is None else HeatmapMaker(kernel, shared=shared)
            self._plain = Executor(
                engine, self._stream, self._heatmaps, self._memory.address, shared=shared
            )
            stack.pop_all()
        self._captured: OrderedDict[Any, Executor] = OrderedDict()  # used last: at the end
        self._used: dict[Any, int] = {}
        self._calls = 0
        self._seen: OrderedDict[Any, None] = OrderedDict()

    def run(self, call: Call) -> Results:
        """Runs the call; the arrays that it returns belong to the caller.

        Raises:
            BackendError: TensorRT failed.
            KernelError: a CUDA call failed.
        """
        key = call.key
        kept = self._kept(key)
        if kept is not None:
            return kept.replay(call)
        if self._comes_again(key):
            return self._run_and_capture(call)
        return self._plain.run(call)

    @contextmanager
    def on_device(
        self,
        image: DeviceTensor,
        class_ids: Array | None,
        names: Sequence[str],
        stream: int,
        pool: driver.MemoryPool | None,
    ) -> Iterator[dict[str, DeviceTensor]]:
        """Runs the engine behind what is on a stream of the caller's; see `DeviceRunner`.

        Args:
            image: the network's input.
            class_ids: the input of that name, on the host, if there is one.
            names: of the outputs.
            stream: of the caller.
            pool: of device memory; None on GPUs without.

        Raises:
            BackendError: TensorRT failed.
            KernelError: a CUDA call failed.
        """
        feeds = {"image": image}
        with ExitStack() as ended:
            if class_ids is not None:
                ids = driver.allocate(class_ids.nbytes, stream, pool)
                ended.callback(ids.close)
                # From memory that isn't page-locked, so it is read before this returns.
                driver.copy_to_device(ids.address, class_ids, class_ids.nbytes, stream)
                feeds["class_ids"] = DeviceTensor(ids.address, class_ids.dtype, class_ids.shape)
            try:
                driver.wait_for(self._stream, stream)
                outputs = self._enqueued(feeds, names)
                driver.wait_for(stream, self._stream)
                yield outputs
                driver.wait_for(self._stream, stream)
            except BaseException:
                with suppress(KernelError):  # the first error is the one to tell
                    self._stream.synchronize()
                raise
            if pool is None:
                self._stream.synchronize()  # the ids' memory isn't freed in a stream's order

    def close(self) -> None:
        """Frees the stream, the contexts and their memory."""
        with ExitStack() as stack:  # all of it, even if one fails; the stream is the last
            stack.callback(self._stream.close)
            stack.callback(self._memory.close)
            if self._heatmaps is not None:
                stack.callback(self._heatmaps.close)
            for executor in (self._plain, *self._captured.values()):
                stack.callback(executor.close)
            self._captured.clear()

    def _kept(self, key: Any) -> Executor | None:
        """Returns the executor that holds the graph of a kind of calls; None without one."""
        self._calls += 1
        if key not in self._captured:
            return None
        self._captured.move_to_end(key)
        self._used[key] = self._calls
        return self._captured[key]

    def _comes_again(self, key: Any) -> bool:
        """Returns whether a kind of calls was seen before, and is to be captured now."""
        if key in self._seen and self._engine.no_capture is None and self._has_room():
            return True
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return False

    def _has_room(self) -> bool:
        """Returns whether there is room for a graph, or one that was not used for long."""
        if len(self._captured) < MAX_GRAPHS:
            return True
        oldest = next(iter(self._captured))
        return self._calls - self._used[oldest] > _REMEMBERED

    def _run_and_capture(self, call: Call) -> Results:
        with self._own_executor() as executor:
            results = executor.run(call)
            self._keep(call.key, executor, executor.capture(call))
        return results

    def _enqueued(
        self, feeds: Mapping[str, DeviceTensor], names: Sequence[str]
    ) -> dict[str, DeviceTensor]:
        """Enqueues the engine on inputs on the device, as a graph where there is one."""
        key = ("on the device", *((name, one.shape) for name, one in feeds.items()))
        kept = self._kept(key)
        if kept is not None:
            return kept.enqueue(feeds, names)
        if self._comes_again(key):
            with self._own_executor() as executor:
                outputs = executor.enqueue(feeds, names)
                if self._keep(key, executor, executor.capture(None)):
                    return outputs
        return self._plain.enqueue(feeds, names)  # in memory that stays

    @contextmanager
    def _own_executor(self) -> Iterator[Executor]:
        """Makes an executor for one kind of calls; it is closed unless `_keep` kept it."""
        if len(self._captured) >= MAX_GRAPHS:
            key, oldest = self._captured.popitem(last=False)
            del self._used[key]
            oldest.close()
        executor = Executor(
            self._engine, self._stream, self._heatmaps, self._memory.address,
            shared=self._shared, settled=True,
        )  # fmt: skip
        try:
            yield executor
        finally:
            if executor not in self._captured.values():
                executor.close()

    def _keep(self, key: Any, executor: Executor, refusal: str | None) -> bool:
        """Keeps an executor with the graph of a kind of calls, unless capturing was refused."""
        if refusal is not None:
            self._engine.refuse_capture(refusal)
            return False
        self._captured[key] = executor
        self._used[key] = self._calls
        return True


class Pool:
    """The workers of an engine, made when they are first needed.

    Args:
        make: makes a worker.
        limit: the most workers that there may be.
    """

    def __init__(self, make: Callable[[], Worker], limit: int = MAX_WORKERS) -> None:
        self._make, self._limit = make, limit
        self._idle: list[Worker] = []
        self._count = 0
        self._closed = False
        self._changed = threading.Condition()

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """Lends the caller a worker of its own; waits for one if all are busy.

        A worker whose call failed is not used again: nobody knows what is left on its stream.

        Raises:
            BackendError: the pool was closed.
        """
        worker = self._taken()
        try:
            yield worker
        except BaseException:
            self._forget(worker)
            raise
        with self._changed:
            keep = not self._closed
            if keep:
                self._idle.append(worker)  # the warmest one is the next to be taken
                self._changed.notify()
        if not keep:
            self._forget(worker)

    def close(self) -> None:
        """Frees the idle workers now, the others when their calls are done."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for worker in idle:
            self._forget(worker)

    def wait(self) -> None:
        """Waits until no worker is left; after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._count == 0)

    def _taken(self) -> Worker:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._idle or self._count < self._limit)
            if self._closed:
                raise BackendError("the backend is closed; load the model again")
            if self._idle:
                return self._idle.pop()
            self._count += 1
        try:
            return self._make()
        except BaseException:
            self._gone()
            raise

    def _forget(self, worker: Worker) -> None:
        try:
            with suppress(KernelError):  # after a failed call, which is the error to tell
                worker.close()
        finally:
            self._gone()

    def _gone(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()
