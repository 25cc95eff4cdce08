"""Several callers of one model of OpenVINO: each run has an infer request to itself."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numpy as np

from sigcam.core.types import Array

_LEAST = 16
"""Infer requests of a model, at least; making one takes up to 50 microseconds. A call that has to
wait for one loses up to a tenth of a millisecond: with 4 of them, 8 callers of a network of 0.12 ms
got 0.7 as many answers, of one of 6 ms as many as ever."""

_FOR_EACH = 2
"""Infer requests for each run that OpenVINO has going on at a time: while one runs, another gets
its inputs and gives its outputs."""


class Requests:
    """Infer requests of a compiled model, which are used again and again.

    They may be used from several threads at once. Runs are started asynchronously, so that they
    happen in OpenVINO's own threads and not in the callers', of which each would otherwise
    set up a pool of threads. Calls for which no request is free wait, in the order in which
    they came. A request takes little memory, as the values inside the network belong to the model.

    All of them are made here, before the first run. OpenVINO reads the network's shapes as it
    makes one, and a run of another one replaces them meanwhile, where they are dynamic: some
    processes ended by "pure virtual method called" (seen in 2026.4; within seconds, if made all the
    time).

    In the mode "throughput", where a run has one of several groups of threads, a batch is
    divided among as many requests as OpenVINO finds best: a single caller has all cores, too.
    """

    def __init__(self, compiled: Any, memory: Array | None = None) -> None:
        """Takes a compiled model, and the memory that must be kept as long as the model is."""
        import openvino

        self._memory = memory
        self._tensor = openvino.Tensor
        self._parts = 1
        if compiled.get_property("PERFORMANCE_HINT") == "THROUGHPUT":
            self._parts = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._idle: SimpleQueue[_Request] = SimpleQueue()
        for _ in range(max(_LEAST, _FOR_EACH * self._parts)):
            self._idle.put(_Request(compiled.create_infer_request()))
        self._compiled = compiled
        self._turn = threading.Lock()

    def run(self, arrays: Sequence[Array], wanted: Sequence[int]) -> list[Array]:
        """Runs the model once.

        Args:
            arrays: the model's inputs, in its order, with the batch first.
            wanted: positions of the outputs to return; these have the batch first, too.

        Returns:
            The outputs, as arrays that belong to the caller.

        Raises:
            RuntimeError: OpenVINO failed.
        """
        parts = self._divided(arrays)
        taken: list[_Request] = []
        try:
            with self._turn:  # so that a call which needs several isn't overtaken for ever
                taken.extend(self._idle.get() for _ in parts)
            for request, part in zip(taken, parts, strict=True):
                request.start(part, [self._shared(array) for array in part])
            values = [request.finish(wanted) for request in taken]
            # Copies, also of a single part: the requests use the memory again.
            return [np.concatenate(parts) for parts in zip(*values, strict=True)]
        except BaseException:
            for request in taken:
                request.settle()
            raise
        finally:
            for request in taken:
                self._idle.put(request)

    def _divided(self, arrays: Sequence[Array]) -> list[list[Array]]:
        """Divides a batch among requests."""
        lengths = {len(array) for array in arrays}
        # Inputs that don't belong together go to OpenVINO as they are, which refuses them.
        rows = lengths.pop() if len(lengths) == 1 else 1
        parts = max(1, min(self._parts, rows))
        if parts == 1:
            return [list(arrays)]
        bounds = [rows * part // parts for part in range(parts + 1)]
        return [[array[begin:end] for array in arrays] for begin, end in pairwise(bounds)]

    def _shared(self, array: Array) -> Any:
        # OpenVINO only shares memory that it may write to, though it doesn't write to it.
        shared = array.flags.writeable and array.flags.c_contiguous
        return self._tensor(array, shared_memory=shared)


class _Request:
    """One of OpenVINO's infer requests."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self._inputs: tuple[Sequence[Any], ...] = ()
        self._running = False

    def start(self, arrays: Sequence[Array], tensors: Sequence[Any]) -> None:
        """Starts a run, whose inputs are kept until the next one: OpenVINO has their addresses.

        Args:
            arrays: the inputs.
            tensors: the same, as OpenVINO's, which may lie in the memory of `arrays`.
        """
        self.settle()
        self._inputs = arrays, tensors
        for index, tensor in enumerate(tensors):
            self._request.set_input_tensor(index, tensor)
        self._running = True
        self._request.start_async()

    def settle(self) -> None:
        """Waits for a run that is still going on, as its caller was interrupted or failed."""
        if self._running:
            with suppress(RuntimeError):
                self._wait()

    def finish(self, wanted: Sequence[int]) -> list[Array]:
        """Waits for the run; returns the outputs, in memory that the next run writes to."""
        self._wait()
        return [self._request.get_output_tensor(index).data for index in wanted]

    def _wait(self) -> None:
        try:
            self._request.wait()
        except RuntimeError:  # the run failed: it is over
            self._running = False
            raise
        self._running = False
