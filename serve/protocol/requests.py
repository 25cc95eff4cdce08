"""From the body of an HTTP request to an `InferRequest`: JSON, and binary data behind it."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from sigcam.core.arguments import shown
from sigcam.core.types import Array
from sigcam.serve.protocol.datatypes import DATATYPES, MOST_AXES, elements_of, shaped
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import (
    InferRequest,
    InputTensor,
    ParameterValue,
    RequestedOutput,
)

__all__ = ["SHARED_MEMORY", "decode_request", "json_object", "refuse_twice"]

SHARED_MEMORY = "shared_memory_region"
_INPUT_PARAMETERS = ("binary_data_size", "content_type")
_OUTPUT_PARAMETERS = ("binary_data", "content_type")
_ALLOWED: dict[str, set[type]] = {"b": {bool}, "f": {int, float}}
_LARGEST = 1 << 63


def decode_request(
    body: bytes, header_length: int | None, model: str, raw_input: str = "encoded_image"
) -> InferRequest:
    r"""Reads an inference request.

    Args:
        body: the request's.
        header_length: bytes of the JSON at the body's beginning, by the header
            Inference-Header-Content-Length; None where all of it is JSON. 0 stands for a raw
            request: the body is the one element of an input of BYTES, and the answer has the
            model's own outputs as binary data.
        model: the model's name, for messages.
        raw_input: name of the input that a raw request is for.

    Raises:
        RequestError: something is missing, of another type, too long or too short; says what.

    Example:
        >>> text = b'{"inputs": [{"name": "image", "shape": [2], "datatype": "UINT8", '
        >>> found = decode_request(text + b'"data": [1, 2]}]}', None, "cats")
        >>> found.inputs[0].data.tolist()
        [1, 2]
        >>> found = decode_request(
        ...     text + b'"parameters": {"binary_data_size": 2}}]}\x01\x02', len(text) + 40, "cats"
        ... )
        >>> found.inputs[0].data.tolist()
        [1, 2]
    """
    if header_length == 0:
        return InferRequest((InputTensor(raw_input, "BYTES", (1,), [body]),), binary=True)
    length = len(body) if header_length is None else header_length
    if length > len(body):
        raise RequestError(
            f"unexpected size for request JSON, expecting {length - len(body)} more bytes"
        )
    data = json_object(body[:length])
    rest = _Rest(memoryview(body)[length:], model, has_length=header_length is not None)
    parameters = _parameters(data, "the request")
    binary = parameters.pop("binary_data_output", False)
    if not isinstance(binary, bool):
        _wrong("binary_data_output", "true or false", binary)
    inputs = tuple(_input(one, rest) for one in _listed(data, "inputs"))
    rest.check_end()
    if not inputs:
        raise RequestError("Unable to parse 'inputs': at least one is wanted, got none")
    refuse_twice("input", [one.name for one in inputs])
    return InferRequest(inputs, _outputs(data, binary), _id(data), parameters, binary)


def json_object(text: bytes) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        RequestError: not JSON in UTF-8, nested too deep, with numbers that JSON doesn't have, or
            no object.

    Example:
        >>> json_object(b'{"ready": true}')
        {'ready': True}
    """
    try:
        data = json.loads(text.decode("utf-8"), parse_constant=_no_number)
    except RequestError:
        raise
    except (ValueError, RecursionError) as exc:
        reason = "nested too deep" if isinstance(exc, RecursionError) else exc
        raise RequestError(f"failed to parse the request JSON buffer: {reason}") from exc
    if not isinstance(data, dict):
        raise RequestError(
            f"failed to parse the request JSON buffer: an object is wanted, got {_kind(data)}"
        )
    return data


class _Rest:
    """The binary data behind the JSON, taken from its beginning, input by input."""

    def __init__(self, data: memoryview, model: str, *, has_length: bool) -> None:
        self._data = data
        self._model = model
        self._has_length = has_length

    def take(self, size: int, name: str) -> memoryview:
        if not self._has_length:
            raise RequestError(
                "must specify valid 'Infer-Header-Content-Length' in request header and "
                "'binary_data_size' when passing inputs in binary data format"
            )
        if size > len(self._data):
            raise RequestError(
                f"unexpected size for input '{name}', expecting {size - len(self._data)} "
                f"additional bytes for model '{self._model}'"
            )
        found, self._data = self._data[:size], self._data[size:]
        return found

    def check_end(self) -> None:
        if len(self._data):
            raise RequestError(f"unexpected additional input data for model '{self._model}'")


def _input(data: object, rest: _Rest) -> InputTensor:
    if not isinstance(data, dict):
        _wrong("inputs", "objects", data)
    name = _text(data, "name")
    datatype = _text(data, "datatype")
    if datatype != "BYTES" and datatype not in DATATYPES:
        raise RequestError(
            f"Unable to parse 'datatype' of input '{name}': one of {', '.join(DATATYPES)} or BYTES "
            f"is wanted, got {shown(datatype)}"
        )
    shape = _shape(data)
    parameters = _parameters(data, f"input '{name}'")
    _check_known(parameters, _INPUT_PARAMETERS, f"input '{name}'")
    size = parameters.get("binary_data_size")
    if (size is None) == ("data" not in data):
        state = "no field is set" if size is None else "set 'data' 'binary_data_size'"
        raise RequestError(
            "Input must set only one of the following fields: 'data', 'binary_data_size' in "
            f"'parameters', 'shared_memory_region' in 'parameters'. But {state}"
        )
    if size is None:
        is_base64 = _is_base64(parameters, f"input '{name}'")
        return InputTensor(
            name, datatype, shape, _from_json(data, name, datatype, shape, is_base64)
        )
    if type(size) is not int or size < 0:
        _wrong("binary_data_size", "a whole number of at least 0", size)
    blob = rest.take(size, name)
    return InputTensor(name, datatype, shape, elements_of(blob, name, datatype, shape))


def _is_base64(parameters: Mapping[str, Any], where: str) -> bool:
    kind = parameters.get("content_type")
    if kind not in (None, "base64"):
        raise RequestError(
            f"content_type of {where} must be 'base64', got {shown(kind)}; leave it out for "
            "plain values"
        )
    return kind is not None


def _from_json(
    data: Mapping[str, Any], name: str, datatype: str, shape: tuple[int, ...], is_base64: bool
) -> Array | list[bytes]:
    count = math.prod(shape)
    values: list[Any] = []
    _flatten(_listed(data, "data"), values, len(shape), name)
    if len(values) != count:
        raise RequestError(
            f"Unable to parse 'data': input '{name}' has {len(values)} elements, its shape "
            f"{list(shape)} wants {count}"
        )
    if datatype == "BYTES":
        return [_bytes_of(one, name, is_base64) for one in values]
    if is_base64:
        raise RequestError(f"content_type base64 is for BYTES; input '{name}' is {datatype}")
    return shaped(_numbers(values, name, datatype), shape, name)


def _flatten(data: list[Any], into: list[Any], depth: int, name: str) -> None:
    """Puts the elements of lists within lists one after the other, row by row."""
    if not any(isinstance(one, list) for one in data):
        into.extend(data)
        return
    if depth <= 1:
        raise RequestError(
            f"Unable to parse 'data': input '{name}' has lists nested deeper than its shape"
        )
    for one in data:
        if not isinstance(one, list):
            _wrong("data", "lists of one depth", one)
        _flatten(one, into, depth - 1, name)


def _numbers(values: list[Any], name: str, datatype: str) -> Array:
    dtype = DATATYPES[datatype]
    kinds = set(map(type, values))
    allowed = _ALLOWED.get(dtype.kind, {int})
    if kinds - allowed:
        other = next(one for one in values if type(one) not in allowed)
        what = {"b": "true or false", "f": "numbers"}.get(dtype.kind, "whole numbers")
        raise RequestError(
            f"Unable to parse 'data': {datatype} of input '{name}' wants {what}, got {_kind(other)}"
        )
    try:
        # An array of whole numbers refuses those that its type doesn't hold.
        made = np.array(values, np.float64 if dtype.kind == "f" else dtype)
    except (OverflowError, ValueError):
        made = None
    if made is not None and dtype.kind == "f":
        with np.errstate(over="ignore"):
            made = made.astype(dtype)
    if made is None or (dtype.kind == "f" and not np.isfinite(made).all()):
        raise RequestError(
            f"Unable to parse 'data': input '{name}' has numbers that {datatype} doesn't hold"
        )
    return made


def _bytes_of(value: object, name: str, is_base64: bool) -> bytes:
    if not isinstance(value, str):
        _wrong("data", f"texts for BYTES of input '{name}'", value)
    try:
        return base64.b64decode(value, validate=True) if is_base64 else value.encode("utf-8")
    except (binascii.Error, ValueError) as exc:
        raise RequestError(f"Unable to parse 'data' of input '{name}': {exc}") from exc


def _outputs(data: Mapping[str, Any], binary: bool) -> tuple[RequestedOutput, ...] | None:
    if data.get("outputs") is None and "outputs" not in data:
        return None
    found = []
    for one in _listed(data, "outputs"):
        if not isinstance(one, dict):
            _wrong("outputs", "objects", one)
        name = _text(one, "name")
        parameters = _parameters(one, f"output '{name}'")
        _check_known(parameters, _OUTPUT_PARAMETERS, f"output '{name}'")
        own = parameters.get("binary_data", binary)
        if not isinstance(own, bool):
            _wrong("binary_data", "true or false", own)
        is_base64 = _is_base64(parameters, f"output '{name}'")
        found.append(RequestedOutput(name, own and not is_base64, is_base64))
    refuse_twice("output", [one.name for one in found])
    return tuple(found) or None


def _check_known(parameters: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    if SHARED_MEMORY in parameters:
        raise RequestError(
            f"{where} names a shared memory region, and this server has none; send the tensor "
            "itself"
        )
    for name in parameters:
        if name not in known:
            raise RequestError(
                f"{where} has the unknown parameter {shown(name)}; known are {', '.join(known)}"
            )


def _parameters(data: Mapping[str, Any], where: str) -> dict[str, ParameterValue]:
    found = data.get("parameters", {})
    if not isinstance(found, dict):
        _wrong(f"parameters of {where}", "an object", found)
    for name, value in found.items():
        if isinstance(value, list) and all(type(one) in (str, int) for one in value):
            continue
        if not isinstance(value, (str, int, float, bool)):
            _wrong(f"parameter {shown(name)} of {where}", "a text, a number, true or false", value)
    return dict(found)


def _shape(data: Mapping[str, Any]) -> tuple[int, ...]:
    found = _listed(data, "shape")
    for one in found:
        if type(one) is not int or not 0 <= one < _LARGEST:
            _wrong("shape", "whole numbers of at least 0", one)
    if len(found) > MOST_AXES:
        raise RequestError(f"Unable to parse 'shape': {MOST_AXES} axes at most, got {len(found)}")
    return tuple(found)


def _id(data: Mapping[str, Any]) -> str | None:
    found = data.get("id")
    if found is not None and not isinstance(found, str):
        _wrong("id", "a text", found)
    return found


def _listed(data: Mapping[str, Any], name: str) -> list[Any]:
    found = data.get(name)
    if not isinstance(found, list):
        _wrong(name, "a list", found)
    return found


def _text(data: Mapping[str, Any], name: str) -> str:
    found = data.get(name)
    if not isinstance(found, str):
        _wrong(name, "a text", found)
    return found


def refuse_twice(what: str, names: list[str]) -> None:
    """Refuses inputs or outputs of one name.

    Args:
        what: they are, for messages.
        names: of all of them.

    Raises:
        RequestError: a name comes twice.

    Example:
        >>> refuse_twice("input", ["image", "class_ids"])
    """
    seen = set()
    for one in names:
        if one in seen:
            raise RequestError(f"{what} '{one}' already exists in request")
        seen.add(one)


def _wrong(name: str, wanted: str, got: object) -> NoReturn:
    raise RequestError(f"Unable to parse '{name}': {wanted} is wanted, got {_kind(got)}")


def _kind(value: object) -> str:
    """Says what JSON has: its text where it is short, else its type."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return shown(value)


def _no_number(text: str) -> NoReturn:
    raise RequestError(f"failed to parse the request JSON buffer: {text} is no JSON number")
