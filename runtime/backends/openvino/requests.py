"""Several callers of one model of OpenVINO: each call has infer requests to itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np

from sigcam.core.types import Array


class Requests:
    """Infer requests of a compiled model, made when they are needed and used again.

    They may be used from several threads at once. Runs are started asynchronously, so that they
    happen in OpenVINO's own threads and not in the callers', of which each would otherwise
    set up a pool of threads. Calls for which no thread is free wait inside OpenVINO. A
    request takes little memory, as the values inside the network belong to the model.

    In the mode "throughput", where a run has one of several groups of threads, a batch is
    divided among as many requests as OpenVINO finds best: a single caller has all cores, too.
    """

    def __init__(self, compiled: Any, memory: Array | None = None) -> None:
        """Takes a compiled model, and the memory that must be kept as long as the model is."""
        import openvino

        self._memory = memory
        self._tensor = openvino.Tensor
        self._compiled = compiled
        self._idle: list[_Request] = []
        self._parts = 1
        if compiled.get_property("PERFORMANCE_HINT") == "THROUGHPUT":
            self._parts = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")

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
        started: list[_Request] = []
        try:
            for part in self._divided(arrays):
                started.append(self._take())
                started[-1].start([self._shared(array) for array in part])
            values = [request.finish(wanted) for request in started]
            # Copies, also of a single part: the requests use the memory again.
            joined = [np.concatenate(parts) for parts in zip(*values, strict=True)]
        except BaseException:
            for request in started:  # which aren't used again
                request.abandon()
            raise
        self._idle.extend(started)
        return joined

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

    def _take(self) -> _Request:
        try:
            return self._idle.pop()
        except IndexError:
            return _Request(self._compiled.create_infer_request())

    def _shared(self, array: Array) -> Any:
        # OpenVINO only shares memory that it may write to, though it doesn't write to it.
        shared = array.flags.writeable and array.flags.c_contiguous
        return self._tensor(array, shared_memory=shared)


class _Request:
    """One of OpenVINO's infer requests."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self._inputs: Sequence[Any] = ()

    def start(self, inputs: Sequence[Any]) -> None:
        """Starts a run, whose inputs are kept until the next one."""
        # OpenVINO knows only their addresses, until it gets other ones.
        self._inputs = inputs
        for index, tensor in enumerate(inputs):
            self._request.set_input_tensor(index, tensor)
        self._request.start_async()

    def finish(self, wanted: Sequence[int]) -> list[Array]:
        """Waits for the run; returns the outputs, in memory that the next run writes to."""
        self._request.wait()
        return [self._request.get_output_tensor(index).data for index in wanted]

    def abandon(self) -> None:
        """Waits for a run that may be going on: it mustn't outlive the arrays that it reads."""
        with suppress(RuntimeError):
            self._request.wait()
