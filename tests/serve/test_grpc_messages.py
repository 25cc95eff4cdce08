"""Messages of gRPC become the same requests as JSON and binary data do, or say what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="needs the extra serve-grpc")

from tritonclient.grpc import service_pb2

from sigcam.serve.grpc.messages import message_of, request_of
from sigcam.serve.protocol.datatypes import DATATYPES
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import InferResponse, OutputTensor

FIELDS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents",
    "INT32": "int_contents", "INT64": "int64_contents", "UINT8": "uint_contents",
    "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip


def asking(**fields: Any) -> Any:
    """A request of one input with the fields given."""
    message = service_pb2.ModelInferRequest(model_name="cat")
    given = {"name": "image", "datatype": "UINT8", "shape": [1, 2], **fields}
    contents = given.pop("contents", None)
    one = message.inputs.add(**given)
    for name, values in (contents or {}).items():
        getattr(one.contents, name).extend(values)
    return message


def values_of(datatype: str) -> np.ndarray[Any, Any]:
    dtype = DATATYPES[datatype]
    if dtype.kind == "b":
        return np.array([[True, False]])
    if dtype.kind == "f":
        return np.array([[0.25, -3]], dtype)
    return np.array([[np.iinfo(dtype).min, np.iinfo(dtype).max]], dtype)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_raw_data_of_each_datatype(datatype: str) -> None:
    values = values_of(datatype)
    message = asking(datatype=datatype)
    message.raw_input_contents.append(values.tobytes())
    found = request_of(message).inputs[0]
    assert isinstance(found.data, np.ndarray)
    assert found.data.dtype == values.dtype
    np.testing.assert_array_equal(found.data, values)


@pytest.mark.parametrize("datatype", FIELDS)
def test_typed_contents_of_each_datatype(datatype: str) -> None:
    values = values_of(datatype)
    message = asking(datatype=datatype, contents={FIELDS[datatype]: values.ravel().tolist()})
    found = request_of(message).inputs[0]
    assert isinstance(found.data, np.ndarray)
    assert found.data.dtype == values.dtype
    np.testing.assert_array_equal(found.data, values)


def test_bytes_come_both_ways() -> None:
    typed = asking(datatype="BYTES", shape=[2], contents={"bytes_contents": [b"\xff\xd8", b""]})
    raw = asking(datatype="BYTES", shape=[2])
    raw.raw_input_contents.append(b"\x02\0\0\0\xff\xd8\0\0\0\0")
    assert request_of(typed).inputs[0].data == request_of(raw).inputs[0].data == [b"\xff\xd8", b""]


def test_parameters_outputs_and_id() -> None:
    message = asking(contents={"uint_contents": [1, 2]})
    message.id = "7"
    message.parameters["classes"].string_param = '["cat"]'
    message.parameters["top_k"].int64_param = 2
    message.parameters["threshold"].double_param = 0.5
    message.outputs.add(name="boxes")
    found = request_of(message)
    assert found.id == "7"
    assert found.parameters == {"classes": '["cat"]', "top_k": 2, "threshold": 0.5}
    assert [one.name for one in found.outputs or ()] == ["boxes"]


def wrong() -> dict[str, tuple[Any, str]]:
    both = asking(contents={"uint_contents": [1, 2]})
    both.raw_input_contents.append(b"ab")
    more = asking()
    more.raw_input_contents.extend([b"ab", b"ab"])
    short = asking()
    short.raw_input_contents.append(b"a")
    cut = asking(datatype="BYTES", shape=[1])
    cut.raw_input_contents.append(b"\x09\0\0\0ab")
    twice = asking(contents={"uint_contents": [1, 2]})
    twice.inputs.append(twice.inputs[0])
    shared = asking()
    shared.inputs[0].parameters["shared_memory_region"].string_param = "/etc/passwd"
    parameter = asking(contents={"uint_contents": [1, 2]})
    parameter.parameters["top_k"].SetInParent()
    output = asking(contents={"uint_contents": [1, 2]})
    output.outputs.add(name="cams").parameters["classification"].int64_param = 3
    empty = asking(shape=[0, 1 << 62, 1 << 62])
    empty.raw_input_contents.append(b"")
    return {
        "no inputs": (service_pb2.ModelInferRequest(model_name="cat"), "at least one input"),
        "no data": (asking(), "unable to find data for input tensor 'image' for model 'cat'"),
        "both": (both, "must not be specified when using raw_input_contents for 'image'"),
        "more": (more, "all 1 inputs"),
        "short": (short, "total byte size 1 for input 'image', expecting 2"),
        "cut": (cut, "expecting string of length 9"),
        "twice": (twice, "'image' already exists"),
        "shared": (shared, "shared memory region"),
        "no value": (parameter, "parameter 'top_k' has no value"),
        "output": (output, "unknown parameter 'classification'"),
        "datatype": (asking(datatype="FP8"), "must be one of BOOL"),
        "negative": (asking(shape=[-1, 2]), "sizes of at least 0"),
        "axes": (asking(shape=[1] * 40), "at most 32"),
        "too large": (empty, "is too large"),
        "elements": (asking(contents={"uint_contents": [1]}), r"shape \[1, 2\] wants 2"),
        "field": (asking(contents={"fp32_contents": [1, 2]}), "must have its data in uint_cont"),
        "range": (asking(contents={"uint_contents": [1, 256]}), "numbers that UINT8 doesn't hold"),
        "half": (asking(datatype="FP16", contents={"fp32_contents": [1, 2]}), "no contents field"),
    }


@pytest.mark.parametrize("case", wrong())
def test_what_is_wrong_is_said(case: str) -> None:
    message, words = wrong()[case]
    with pytest.raises(RequestError, match=words) as found:
        request_of(message)
    assert found.value.status == 400


def test_answers_are_raw_data_in_order() -> None:
    logits = np.array([[0.5, -1]], ">f4")
    outputs = (
        OutputTensor("logits", "FP32", (1, 2), logits),
        OutputTensor("boxes", "BYTES", (2,), [b"[]", b""]),
    )
    message = message_of(InferResponse("cat", "2", outputs, "7"))
    assert (message.model_name, message.model_version, message.id) == ("cat", "2", "7")
    assert [one.name for one in message.outputs] == ["logits", "boxes"]
    assert [list(one.shape) for one in message.outputs] == [[1, 2], [2]]
    assert message.raw_output_contents[0] == logits.astype("<f4").tobytes()
    assert message.raw_output_contents[1] == b"\x02\0\0\0[]\0\0\0\0"
