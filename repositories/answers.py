"""Answers to requests that another server has put together: no queue and no threads of ours.

What a request may ask for, and what its outputs are, is as for `sigcam serve`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sigcam.runtime.explain import ExplainCall, NamedImage, run_together
from sigcam.runtime.model import ExportedModel, ModelOutputs
from sigcam.serve.asked import Asked, Reading
from sigcam.serve.options import ServeOptions
from sigcam.serve.outputs import ImageResult, make_outputs
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import InferRequest, InferResponse
from sigcam.serve.service import refusal

__all__ = ["Answers"]


@dataclass(frozen=True, eq=False)
class _Item:
    """An image of one of the requests, by the request's number and its own."""

    asked: Asked
    owner: int
    index: int

    @property
    def call(self) -> ExplainCall:
        return self.asked.calls[self.index]

    @property
    def image(self) -> NamedImage:
        return self.asked.images[self.index]


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
            _Item(one, number, index)
            for number, one in enumerate(read)
            if isinstance(one, Asked)
            for index in range(len(one.images))
        ]
        made: list[list[ImageResult | RequestError]] = [[] for _ in read]
        for item, result in zip(items, self._results(items), strict=True):
            made[item.owner].append(result)
        return [
            self._answer(one, results) if isinstance(one, Asked) else one
            for one, results in zip(read, made, strict=True)
        ]

    def _read(self, request: InferRequest) -> Asked | RequestError:
        try:
            reading = Reading(request, self.model, self._name, self._options)
            return reading.asked(by_json=self._by_json)
        except Exception as exc:
            return refusal(exc)

    def _results(self, items: Sequence[_Item]) -> list[ImageResult | RequestError]:
        """Runs the images in batches of those that can be run together; keeps their order."""
        made: dict[int, ImageResult | RequestError] = {}
        waiting = list(range(len(items)))
        while waiting:
            first = items[waiting[0]].call
            batch = [one for one in waiting if items[one].call.kind == first.kind]
            batch = batch[: self._options.most_together]
            waiting = [one for one in waiting if one not in set(batch)]
            rows = self._run([items[one] for one in batch])
            for place, row in zip(batch, rows, strict=True):
                made[place] = _result(items[place], row)
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
        self, asked: Asked, results: Sequence[ImageResult | RequestError]
    ) -> InferResponse | RequestError:
        good = [one for one in results if isinstance(one, ImageResult)]
        if len(good) < len(results):
            return next(one for one in results if isinstance(one, RequestError))
        try:
            return InferResponse(self._name, "1", make_outputs(asked.wanted, good), asked.id)
        except Exception as exc:
            return refusal(exc)


def _result(
    item: _Item, row: tuple[ModelOutputs, int] | RequestError
) -> ImageResult | RequestError:
    if isinstance(row, RequestError):
        return row
    try:
        return item.asked.result(item.index, *row)
    except Exception as exc:
        return refusal(exc)
