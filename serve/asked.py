"""What a request asks for, read and checked, and what is made of the rows that its images get.

Whoever runs the images does so between the two: `Work` with those of other requests, another
server's process with those that it was handed together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sigcam.runtime.explain import ExplainCall, NamedImage
from sigcam.runtime.explanation import Explanation
from sigcam.runtime.model import ExportedModel, ModelOutputs, probabilities_of
from sigcam.serve.inputs import can_draw, image_tensor, read_inputs
from sigcam.serve.options import ServeOptions
from sigcam.serve.outputs import (
    OUTPUTS,
    ImageResult,
    check_outputs,
    check_size,
    default_outputs,
)
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import InferRequest, RequestedOutput
from sigcam.serve.wishes import wishes_of

__all__ = ["Asked", "Reading"]


@dataclass(frozen=True, eq=False)
class Asked:
    """A request that was read and checked.

    Attributes:
        id: the request's own; None without one.
        wanted: the outputs.
        images: prepared for the network.
        calls: what is asked of each image.
        threshold: of the boxes.
        options: the limits.
    """

    id: str | None
    wanted: tuple[RequestedOutput, ...]
    images: list[NamedImage]
    calls: list[ExplainCall]
    threshold: float
    options: ServeOptions

    def result(
        self,
        index: int,
        outputs: ModelOutputs,
        row: int,
        made: list[Explanation] | None = None,
    ) -> ImageResult:
        """Makes what an image came to.

        Args:
            index: which of the request's images it is.
            outputs: of the run that it was in.
            row: of the run that is this image's.
            made: its explanations, where they are made and its row was checked already.

        Raises:
            RequestError: as `check_row`.
            SigcamError: as `ExplainCall.explain_row`.
        """
        call = self.calls[index]
        if made is None:
            self.check_row(index, outputs, row)
            made = call.explain_row(self.images[index], outputs, row)
        return ImageResult(made, outputs, row, call, self.threshold)

    def check_row(self, index: int, outputs: ModelOutputs, row: int) -> None:
        """Refuses more classes of a least probability than may have maps.

        Args:
            index: which of the request's images it is.
            outputs: of the run that it was in.
            row: of the run that is this image's.

        Raises:
            RequestError: so many, or maps of so many that are too large.
        """
        call = self.calls[index]
        least = call.request.min_probability
        if least is None:
            return
        probabilities = probabilities_of(outputs.logits[row], call.model.spec.task)
        count = int(np.count_nonzero(probabilities >= least))
        if count > self.options.max_classes:
            raise RequestError(
                f"{count} classes have a probability of at least {least:g}, and this server makes "
                f"maps of at most {self.options.max_classes} for an image; ask for a higher "
                "probability"
            )
        check_size(self.wanted, [self.images[index]], [count], self.options)


class Reading:
    """A request whose parameters are understood and whose images are found, but not read yet.

    Attributes:
        tensor: the input with the images.
    """

    def __init__(
        self, request: InferRequest, model: ExportedModel, name: str, options: ServeOptions
    ) -> None:
        """Looks at the parameters and for the images.

        Args:
            request: the request.
            model: that is asked.
            name: its name, for messages.
            options: the limits.

        Raises:
            RequestError: an unknown parameter or input, no images or too many.
            UsageError: a parameter of another type or out of range.
        """
        self._request, self._model, self._name, self._options = request, model, name, options
        self._wishes = wishes_of(request.parameters)
        self.tensor = image_tensor(request, model, name, options.request_images)

    def asked(self, *, by_json: bool, hold: Callable[[int], None] | None = None) -> Asked:
        """Checks what is asked, and reads and prepares the images.

        Args:
            by_json: whether an answer is JSON unless an output is asked for as binary data.
            hold: is told how many images there are, once only they are left to read; may raise.

        Raises:
            SigcamError: what can't be had, by `check_outputs`, `Wishes.call`, `read_inputs` or
                `check_size`.
        """
        request, model, name, options = self._request, self._model, self._name, self._options
        wanted = request.outputs or default_outputs(model, binary=request.binary)
        draws = can_draw(self.tensor, model)
        check_outputs(wanted, model, name, has_images=draws, by_json=by_json)
        call = self._wishes.call(model, options)
        if hold is not None:
            hold(self.tensor.shape[0])
        keep = any(OUTPUTS[one.name].draws for one in wanted)
        inputs = read_inputs(request, self.tensor, model, name, options, keep_images=keep)
        if inputs.requests is not None and self._wishes.names_classes:
            raise RequestError(
                "classes are named by the input class_ids or by parameters, not by both; leave out "
                "one of them"
            )
        calls = inputs.calls(call)
        check_size(wanted, inputs.images, [one.request.count for one in calls], options)
        return Asked(request.id, wanted, inputs.images, calls, self._wishes.threshold, options)
