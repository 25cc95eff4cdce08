"""From the messages of gRPC to requests and answers, and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from sigcam.core.types import Array
from sigcam.serve.protocol.datatypes import (
    DATATYPES,
    MOST_AXES,
    bytes_of,
    elements_of,
    join_bytes,
    shaped,
)
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import (
    InferRequest,
    InferResponse,
    InputTensor,
    ParameterValue,
    RequestedOutput,
)
from sigcam.serve.protocol.requests import SHARED_MEMORY, refuse_twice

# Where each datatype lies in a message; FP16 has no place of its own and comes as raw data.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def request_of(message: Any) -> InferRequest:
    """Reads a ModelInferRequest.

    Args:
        message: its tensors come as raw data, all of them, or each in the field of its datatype.

    Raises:
        RequestError: something is missing, of another type, too long or too short; says what.

    Example:
        >>> message = service_pb2.ModelInferRequest(model_name="cat", id="7")
        >>> _ = message.inputs.add(name="image", datatype="UINT8", shape=[2])
        >>> message.raw_input_contents.append(bytes([1, 2]))
        >>> found = request_of(message)
        >>> found.id, found.inputs[0].data.tolist()
        ('7', [1, 2])
    """
    if not message.inputs:
        raise RequestError(
            f"at least one input is wanted for model '{message.model_name}', got none"
        )
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise RequestError(
            f"raw_input_contents must hold the data of all {len(message.inputs)} inputs for model "
            f"'{message.model_name}', got {len(raw)} elements"
        )
    inputs = tuple(
        _input(one, raw[place] if raw else None, message.model_name)
        for place, one in enumerate(message.inputs)
    )
    refuse_twice("input", [one.name for one in inputs])
    parameters = _parameters(message.parameters)
    binary = parameters.pop("binary_data_output", True)
    if not isinstance(binary, bool):
        raise RequestError("parameter 'binary_data_output' must be true or false")
    return InferRequest(inputs, _outputs(message.outputs), message.id or None, parameters, True)


def message_of(response: InferResponse) -> Any:
    """Writes a ModelInferResponse; tensors go as raw data, as Triton's do.

    Example:
        >>> from sigcam.serve.protocol.messages import OutputTensor
        >>> made = OutputTensor("logits", "FP32", (1, 2), np.array([[0.5, 1]], np.float32))
        >>> message = message_of(InferResponse("cat", "1", (made,), "7"))
        >>> np.frombuffer(message.raw_output_contents[0], np.float32).tolist(), message.id
        ([0.5, 1.0], '7')
    """
    message = service_pb2.ModelInferResponse(
        model_name=response.model, model_version=response.version, id=response.id or ""
    )
    for one in response.outputs:
        message.outputs.add(name=one.name, datatype=one.datatype, shape=one.shape)
        data = join_bytes(one.data) if isinstance(one.data, list) else bytes_of(one.data)
        message.raw_output_contents.append(data)
    return message


def _input(message: Any, raw: bytes | None, model: str) -> InputTensor:
    name, datatype = message.name, message.datatype
    if datatype not in _CONTENTS and datatype not in DATATYPES:
        raise RequestError(
            f"datatype of input '{name}' must be one of {', '.join(DATATYPES)} or BYTES, got "
            f"'{datatype[:40]}'"
        )
    if SHARED_MEMORY in message.parameters:
        raise RequestError(
            f"input '{name}' names a shared memory region, and this server has none; send the "
            "tensor itself"
        )
    shape = _shape(message)
    typed = message.HasField("contents")
    if raw is not None and typed:
        raise RequestError(
            f"contents field must not be specified when using raw_input_contents for '{name}' for "
            f"model '{model}'"
        )
    if raw is not None:
        data = elements_of(memoryview(raw), name, datatype, shape)
        return InputTensor(name, datatype, shape, data)
    if not typed:
        raise RequestError(
            f"unable to find data for input tensor '{name}' for model '{model}' in request."
        )
    return InputTensor(name, datatype, shape, _from_contents(message, shape))


def _shape(message: Any) -> tuple[int, ...]:
    if any(one < 0 for one in message.shape) or len(message.shape) > MOST_AXES:
        raise RequestError(
            f"shape of input '{message.name}' must be at most {MOST_AXES} sizes of at least 0, "
            f"got {list(message.shape)[: MOST_AXES + 1]}"
        )
    return tuple(message.shape)


def _from_contents(message: Any, shape: tuple[int, ...]) -> Array | list[bytes]:
    name, datatype = message.name, message.datatype
    field = _CONTENTS.get(datatype)
    if field is None:
        raise RequestError(
            f"{datatype} has no contents field; send input '{name}' in raw_input_contents"
        )
    others = {one.name for one, _ in message.contents.ListFields()} - {field}
    if others:
        raise RequestError(
            f"input '{name}' of {datatype} must have its data in {field}, got {min(others)}"
        )
    values = getattr(message.contents, field)
    count = math.prod(shape)
    if len(values) != count:
        raise RequestError(
            f"input '{name}' has {len(values)} elements in {field}, its shape {list(shape)} wants "
            f"{count}"
        )
    if datatype == "BYTES":
        return list(values)
    try:
        # Bytes and shorts come in fields of 32 bits; an array refuses what its type doesn't hold.
        array = np.array(list(values), DATATYPES[datatype])
    except OverflowError as exc:
        raise RequestError(f"input '{name}' has numbers that {datatype} doesn't hold") from exc
    return shaped(array, shape, name)


def _outputs(messages: Any) -> tuple[RequestedOutput, ...] | None:
    for one in messages:
        if SHARED_MEMORY in one.parameters:
            raise RequestError(
                f"output '{one.name}' names a shared memory region, and this server has none; "
                "leave it out"
            )
        for name in one.parameters:
            if name != "binary_data":  # raw is the only way here
                raise RequestError(
                    f"output '{one.name}' has the unknown parameter '{name[:40]}'; leave it out"
                )
    refuse_twice("output", [one.name for one in messages])
    return tuple(RequestedOutput(one.name, binary=True) for one in messages) or None


def _parameters(messages: Any) -> dict[str, ParameterValue]:
    found: dict[str, ParameterValue] = {}
    for name, one in messages.items():
        kind = one.WhichOneof("parameter_choice")
        if kind is None:
            raise RequestError(f"parameter '{name[:40]}' has no value")
        found[name] = getattr(one, kind)
    return found
