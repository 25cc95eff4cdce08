"""Several callers on one model of OpenVINO: each call has an infer request to itself."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from sigcam.runtime.backends.base import Array


class Requests:
    """Infer requests of a compiled model, made when they are needed and used again.

    May be used from several threads at once. Runs are started asynchronously, so that they
    happen in the engine's own threads and not in the callers', of which each would otherwise
    set up a pool of threads.

    In the mode "throughput", as many calls run at once as OpenVINO finds best for the model;
    further ones wait. In "latency" they wait inside OpenVINO, which runs one at a time with
    all threads: the next one's inputs are set meanwhile.
    """

    def __init__(self, compiled: Any) -> None:
        import openvino

        self._tensor = openvino.Tensor
        self._compiled = compiled
        self._idle: list[_Request] = []
        self._turns: AbstractContextManager[Any] = nullcontext()
        if compiled.get_property("PERFORMANCE_HINT") == "THROUGHPUT":
            best = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
            self._turns = threading.BoundedSemaphore(best)

    def run(self, arrays: Sequence[Array], wanted: Sequence[int]) -> list[Array]:
        """Runs the model once.

        Args:
            arrays: its inputs, in its order.
            wanted: positions of the outputs to return.

        Returns:
            Arrays of the caller's own.

        Raises:
            RuntimeError: OpenVINO failed.
        """
        with self._turns:
            try:
                request = self._idle.pop()
            except IndexError:
                request = _Request(self._compiled.create_infer_request())
            values = request.run([self._shared(array) for array in arrays], wanted)
            self._idle.append(request)  # one that failed isn't used again
        return values

    def _shared(self, array: Array) -> Any:
        # OpenVINO shares memory that it may write to only, though it doesn't write to it.
        shared = array.flags.writeable and array.flags.c_contiguous
        return self._tensor(array, shared_memory=shared)


class _Request:
    """One of OpenVINO's infer requests."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self._inputs: Sequence[Any] = ()

    def run(self, inputs: Sequence[Any], wanted: Sequence[int]) -> list[Array]:
        # OpenVINO knows the addresses only, and keeps them until it gets other ones.
        self._inputs = inputs
        request = self._request
        for index, tensor in enumerate(inputs):
            request.set_input_tensor(index, tensor)
        try:
            request.start_async()
            request.wait()
        except BaseException:
            with suppress(RuntimeError):
                request.wait()  # the run mustn't outlive the arrays that it reads
            raise
        return [request.get_output_tensor(index).data.copy() for index in wanted]
