"""Requests and answers as objects, whatever carried them: JSON, binary data or gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sigcam.core.types import Array

__all__ = [
    "InferRequest",
    "InferResponse",
    "InputTensor",
    "OutputTensor",
    "ParameterValue",
    "RequestedOutput",
]

ParameterValue = str | int | float | bool | list[str | int]
"""A parameter's value. Lists come over HTTP only; the protocol itself has none."""

Elements = Array | list[bytes]
"""A tensor's elements: an array in its shape, or those of BYTES one after the other."""


@dataclass(frozen=True, eq=False)
class InputTensor:
    """An input of a request.

    Attributes:
        name: of the input.
        datatype: a key of `DATATYPES`, or "BYTES".
        shape: sizes, none negative.
        data: as many elements as the shape says; arrays may be views of the request's body.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Elements


@dataclass(frozen=True)
class RequestedOutput:
    """An output that a request asks for.

    Attributes:
        name: of the output.
        binary: whether it comes as binary data, where the carrier has both ways.
        base64: whether bytes come as base64 in a text, over HTTP.
    """

    name: str
    binary: bool = False
    base64: bool = False


@dataclass(frozen=True, eq=False)
class InferRequest:
    """A request for inference.

    Attributes:
        inputs: at least one, no name twice.
        outputs: what is wanted; None for the model's own outputs.
        id: is given back with the answer; None where there is none.
        parameters: further wishes by name.
        binary: whether outputs come as binary data where they aren't named.
    """

    inputs: tuple[InputTensor, ...]
    outputs: tuple[RequestedOutput, ...] | None = None
    id: str | None = None
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    binary: bool = False


@dataclass(frozen=True, eq=False)
class OutputTensor:
    """An output of an answer.

    Attributes:
        name, datatype, shape, data: as those of an `InputTensor`.
        binary: whether it goes as binary data, where the carrier has both ways.
        base64: whether bytes go as base64 in a text, over HTTP.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Elements
    binary: bool = False
    base64: bool = False


@dataclass(frozen=True, eq=False)
class InferResponse:
    """An answer.

    Attributes:
        model: name of the model that was run.
        version: its version.
        outputs: in the order in which they were asked for.
        id: the request's.
    """

    model: str
    version: str
    outputs: tuple[OutputTensor, ...]
    id: str | None = None
