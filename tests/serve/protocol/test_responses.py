"""Answers are written as the protocol says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import InferResponse, OutputTensor
from sigcam.serve.protocol.responses import encode_response, error_body


def encoded(*outputs):
    body, length = encode_response(InferResponse("cats", "2", outputs, "7"))
    head = json.loads(body if length is None else body[:length])
    assert (head["model_name"], head["model_version"], head["id"]) == ("cats", "2", "7")
    return head["outputs"], b"" if length is None else body[length:]


def test_numbers_in_json_are_exact():
    values = np.array([[0.1, 1e-30, -3e38]], np.float32)
    (one,), rest = encoded(OutputTensor("x", "FP32", (1, 3), values))
    assert one == {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": values[0].tolist()}
    assert np.array_equal(np.array(one["data"], np.float32), values[0])
    assert rest == b""


def test_binary_data_stands_behind_in_the_order_of_the_outputs():
    big = np.array([1, 256], ">i4")
    outputs, rest = encoded(
        OutputTensor("x", "INT32", (2,), big, binary=True),
        OutputTensor("y", "INT64", (1,), np.array([5])),
        OutputTensor("z", "BYTES", (2,), [b"a", b""], binary=True),
    )
    assert [one.get("parameters") for one in outputs] == [
        {"binary_data_size": 8}, None, {"binary_data_size": 9},
    ]  # fmt: skip
    assert rest == b"\1\0\0\0\0\1\0\0" + b"\1\0\0\0a\0\0\0\0"


def test_bytes_in_json_are_text_or_base64():
    (one,), _ = encoded(OutputTensor("x", "BYTES", (1,), ["é".encode()]))
    assert one["data"] == ["é"]
    (one,), _ = encoded(OutputTensor("x", "BYTES", (1,), [b"\xff"], base64=True))
    assert (one["data"], one["parameters"]) == (["/w=="], {"content_type": "base64"})
    with pytest.raises(RequestError, match="JSON can't hold"):
        encoded(OutputTensor("x", "BYTES", (1,), [b"\xff"]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_json_has_no_such_numbers(value):
    array = np.array([value], np.float32)
    with pytest.raises(RequestError, match="aren't finite"):
        encoded(OutputTensor("x", "FP32", (1,), array))
    assert encoded(OutputTensor("x", "FP32", (1,), array, binary=True))[1] == array.tobytes()


def test_errors_are_ascii():
    assert json.loads(error_body("é \ud800")) == {"error": "é \ud800"}
    assert error_body("é").isascii()
