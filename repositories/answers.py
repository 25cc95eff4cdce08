"""Answers to requests that another server has put together: no queue and no threads of ours.

What a request may ask for, and what its outputs are, is as for `sigcam serve`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sigcam.runtime.explain import ExplainCall, NamedImage, run_together
from sigcam.runtime.explanation import Explanation
from sigcam.runtime.model import ExportedModel, ModelOutputs
from sigcam.serve.inputs import can_draw, image_tensor, read_inputs
from sigcam.serve.options import ServeOptions
from sigcam.serve.outputs import (
    OUTPUTS,
    ImageResult,
    check_outputs,
    check_size,
    default_outputs,
    make_outputs,
)
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import InferRequest, InferResponse, RequestedOutput
from sigcam.serve.service import refusal
from sigcam.serve.wishes import wishes_of

__all__ = ["Answers"]


@dataclass(frozen=True, eq=False)
class _Read:
    """A request that was read and checked."""

    id: str | None
    wanted: tuple[RequestedOutput, ...]
    images: list[NamedImage]
    calls: list[ExplainCall]
    threshold: float


@dataclass(frozen=True, eq=False)
class _Item:
    """An image of one of the requests, by the request's number."""

    owner: int
    image: NamedImage
    call: ExplainCall


class Answers:
    """Answers requests for one model.

    Attributes:
        model: runs them.
    """

    def __init__(
        self, model: ExportedModel, name: str, options: ServeOptions, *, by_json: bool
    ) -> None:
        """Takes an opened model.

        Args:
            model: runs the requests.
            name: of the model, for messages.
            options: the limits, and the most images in one run.
            by_json: whether an answer is JSON unless an output is asked for as binary data.
        """
        self.model = model
        self._name, self._options, self._by_json = name, options, by_json

    def to(self, requests: Sequence[InferRequest]) -> list[InferResponse | RequestError]:
        """Answers requests, whose images are run together where they ask for alike.

        Args:
            requests: at least one.

        Returns:
            For each request its answer, or why it has none, as a client is told it; one that is
            wrong doesn't cost the others theirs.

        Example:
            (answer,) = Answers(model, "cats", ServeOptions(), by_json=False).to([request])
        """
        read = [self._read(one) for one in requests]
        items = [
            _Item(number, image, call)
            for number, one in enumerate(read)
            if isinstance(one, _Read)
            for image, call in zip(one.images, one.calls, strict=True)
        ]
        made: list[list[ImageResult | RequestError]] = [[] for _ in read]
        for item, result in zip(items, self._results(items, read), strict=True):
            made[item.owner].append(result)
        return [
            self._answer(one, results) if isinstance(one, _Read) else one
            for one, results in zip(read, made, strict=True)
        ]

    def _read(self, request: InferRequest) -> _Read | RequestError:
        model, name, options = self.model, self._name, self._options
        try:
            wishes = wishes_of(request.parameters)
            tensor = image_tensor(request, model, name, options.request_images)
            wanted = request.outputs or default_outputs(model, binary=request.binary)
            check_outputs(
                wanted, model, name, has_images=can_draw(tensor, model), by_json=self._by_json
            )
            call = wishes.call(model, options)
            keep = any(OUTPUTS[one.name].draws for one in wanted)
            inputs = read_inputs(request, model, name, options, keep_images=keep)
            if inputs.requests is not None and wishes.names_classes:
                raise RequestError(
                    "classes are named by the input class_ids or by parameters, not by both; leave "
                    "out one of them"
                )
            calls = inputs.calls(call)
            counts = [one.request.count for one in calls]
            check_size(wanted, inputs.images, counts, options)
        except Exception as exc:
            return refusal(exc)
        return _Read(request.id, wanted, inputs.images, calls, wishes.threshold)

    def _results(
        self, items: Sequence[_Item], read: Sequence[_Read | RequestError]
    ) -> list[ImageResult | RequestError]:
        """Runs the images in batches of those that can be run together; keeps their order."""
        made: dict[int, ImageResult | RequestError] = {}
        waiting = list(range(len(items)))
        while waiting:
            first = items[waiting[0]].call
            batch = [one for one in waiting if items[one].call.kind == first.kind]
            batch = batch[: self._options.batch_size]
            waiting = [one for one in waiting if one not in set(batch)]
            rows = self._run([items[one] for one in batch])
            for place, row in zip(batch, rows, strict=True):
                owner = read[items[place].owner]
                assert isinstance(owner, _Read)  # noqa: S101 (the others have no items)
                made[place] = _result(items[place], row, owner.threshold)
        return [made[place] for place in range(len(items))]

    def _run(self, items: Sequence[_Item]) -> list[tuple[ModelOutputs, int] | RequestError]:
        """Runs images in one batch; each by itself where the batch fails by one of them."""
        try:
            outputs = run_together([one.call for one in items], [one.image for one in items])
        except Exception as exc:
            if len(items) == 1:
                return [refusal(exc)]
            return [row for one in items for row in self._run([one])]
        return [(outputs, row) for row in range(len(items))]

    def _answer(
        self, read: _Read, results: Sequence[ImageResult | RequestError]
    ) -> InferResponse | RequestError:
        good = [one for one in results if isinstance(one, ImageResult)]
        if len(good) < len(results):
            return next(one for one in results if isinstance(one, RequestError))
        try:
            return InferResponse(self._name, "1", make_outputs(read.wanted, good), read.id)
        except Exception as exc:
            return refusal(exc)


def _result(
    item: _Item, row: tuple[ModelOutputs, int] | RequestError, threshold: float
) -> ImageResult | RequestError:
    if isinstance(row, RequestError):
        return row
    try:
        made: list[Explanation] = item.call.explain_row(item.image, *row)
    except Exception as exc:
        return refusal(exc)
    return ImageResult(made, *row, item.call, threshold)
