"""Requests are read as the protocol says, and refused with the reason where they aren't so."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from sigcam.serve.protocol.datatypes import DATATYPES, datatype_of, join_bytes, split_bytes
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.requests import decode_request


def decoded(data, rest=b"", *, length=True):
    head = data if isinstance(data, bytes) else json.dumps(data).encode()
    return decode_request(head + rest, len(head) if length and head else None, "cats")


def with_input(**changes):
    one = {"name": "image", "shape": [2], "datatype": "INT32", "data": [1, 2], **changes}
    return {"inputs": [{key: value for key, value in one.items() if value is not None}]}


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_as_binary_data_and_as_json(datatype):
    wanted = np.array([[0, 1, 1], [1, 0, 1]], DATATYPES[datatype])
    parameters = {"binary_data_size": wanted.nbytes}
    given = with_input(shape=[2, 3], datatype=datatype, data=None, parameters=parameters)
    found = decoded(given, wanted.tobytes()).inputs[0]
    assert found.datatype == datatype_of(wanted.dtype) == datatype
    assert found.data.dtype == wanted.dtype
    assert np.array_equal(found.data, wanted)
    for data in (wanted.tolist(), wanted.ravel().tolist()):
        read = decoded(with_input(shape=[2, 3], datatype=datatype, data=data)).inputs[0].data
        assert read.dtype == wanted.dtype
        assert np.array_equal(read, wanted)


def test_bytes():
    texts = [b"", b"ab", "é".encode()]
    blob = join_bytes(texts)
    parameters = {"binary_data_size": len(blob)}
    given = with_input(shape=[3], datatype="BYTES", data=None, parameters=parameters)
    assert decoded(given, blob).inputs[0].data == texts
    given = with_input(shape=[3], datatype="BYTES", data=["", "ab", "é"])
    assert decoded(given).inputs[0].data == texts
    coded = [base64.b64encode(one).decode() for one in texts]
    given = with_input(
        shape=[3, 1], datatype="BYTES", data=coded, parameters={"content_type": "base64"}
    )
    assert decoded(given).inputs[0].data == texts
    assert split_bytes(memoryview(join_bytes([])), 0, "image") == []


def test_several_inputs_take_their_parts_of_the_binary_data():
    inputs = [
        {"name": "b", "shape": [2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}},
        {"name": "j", "shape": [1], "datatype": "FP64", "data": [0.5]},
        {"name": "a", "shape": [1], "datatype": "INT16", "parameters": {"binary_data_size": 2}},
    ]
    found = decoded({"inputs": inputs}, b"\x01\x02\x03\x00").inputs
    assert [one.data.tolist() for one in found] == [[1, 2], [0.5], [3]]


def test_outputs_parameters_and_id():
    given = with_input() | {
        "id": "a/b",
        "parameters": {"top_k": 2, "binary_data_output": True, "classes": ["cat", 1]},
        "outputs": [
            {"name": "x"},
            {"name": "y", "parameters": {"binary_data": False}},
            {"name": "z", "parameters": {"content_type": "base64"}},
        ],
    }
    found = decoded(given)
    assert found.id == "a/b"
    assert found.parameters == {"top_k": 2, "classes": ["cat", 1]}
    assert [(one.name, one.binary, one.base64) for one in found.outputs] == [
        ("x", True, False), ("y", False, False), ("z", False, True),
    ]  # fmt: skip
    assert decoded(with_input() | {"outputs": []}).outputs is None


def _binary(size, **changes):
    return with_input(data=None, parameters={"binary_data_size": size}, **changes)


@pytest.mark.parametrize(
    ("given", "rest", "reason"),
    [
        (b"", b"", "failed to parse"),
        (b"{", b"", "failed to parse"),
        (b"\xff\xfe{}", b"", "failed to parse"),
        (b"[1]", b"", "an object is wanted, got a list"),
        (b'{"a": NaN}', b"", "NaN is no JSON number"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "nested too deep"),
        (b'{"a": ' + b"1" * 5000 + b"}", b"", "failed to parse"),
        ({}, b"", "'inputs': a list is wanted, got nothing"),
        ({"inputs": {}}, b"", "'inputs': a list"),
        ({"inputs": []}, b"", "at least one"),
        ({"inputs": [3]}, b"", "objects is wanted, got 3"),
        (with_input(name=None), b"", "'name': a text is wanted, got nothing"),
        (with_input(name=3), b"", "'name'"),
        (with_input(datatype="FLOAT"), b"", "'datatype' of input 'image'"),
        (with_input(datatype=None), b"", "'datatype'"),
        (with_input(shape=None), b"", "'shape'"),
        (with_input(shape=[2.0]), b"", "'shape': whole numbers"),
        (with_input(shape=[True]), b"", "'shape'"),
        (with_input(shape=[-1]), b"", "'shape'"),
        (with_input(shape=[1 << 64]), b"", "'shape'"),
        (with_input(shape=[1] * 33), b"", "32 axes at most"),
        (with_input(shape=[3]), b"", "has 2 elements, its shape [3] wants 3"),
        (with_input(shape=[1 << 62, 1 << 62]), b"", "wants"),
        (with_input(data=[1, "2"]), b"", "whole numbers, got '2'"),
        (with_input(data=[1, 2.5]), b"", "whole numbers, got 2.5"),
        (with_input(data=[1, True]), b"", "whole numbers, got true"),
        (with_input(data=[1, None]), b"", "got nothing"),
        (with_input(data=[1, 1 << 31]), b"", "numbers that INT32 doesn't hold"),
        (with_input(data=[1, 10**400]), b"", "numbers that INT32 doesn't hold"),
        (with_input(data=[1, 1e39], datatype="FP32"), b"", "numbers that FP32 doesn't hold"),
        (with_input(data=[1, 10**400], datatype="FP64"), b"", "numbers that FP64 doesn't hold"),
        (with_input(data=[1, 0], datatype="BOOL"), b"", "true or false, got 1"),
        (with_input(data=[[1], [2]]), b"", "nested deeper"),
        (with_input(data=[[1, 2], 3], shape=[2, 2]), b"", "lists of one depth"),
        (with_input(data={"0": 1}), b"", "'data': a list"),
        (with_input(data=["a", 3], datatype="BYTES"), b"", "texts for BYTES"),
        (with_input(data=["a", "\ud800"], datatype="BYTES"), b"", "surrogates"),
        (
            with_input(
                data=["a", "b"], datatype="BYTES", parameters={"content_type": "base64"}
            ),
            b"", "'data' of input",
        ),
        (with_input(parameters={"content_type": "base64"}), b"", "base64 is for BYTES"),
        (with_input(parameters={"content_type": "np"}), b"", "must be 'base64', got 'np'"),
        (with_input(parameters={"unknown": 1}), b"", "unknown parameter 'unknown'"),
        (with_input(parameters={"shared_memory_region": "r"}), b"", "shared memory"),
        (with_input(parameters=3), b"", "parameters of input 'image'"),
        (with_input(parameters={"binary_data_size": 8}), b"", "only one of the following"),
        (with_input(data=None), b"", "no field is set"),
        (_binary(-1), b"", "'binary_data_size'"),
        (_binary("8"), b"", "'binary_data_size'"),
        (_binary(True), b"", "'binary_data_size'"),
        (_binary(0, shape=[0, 1 << 62, 1 << 62]), b"", "is too large"),
        (with_input(shape=[0, 1 << 62, 1 << 62], data=[]), b"", "is too large"),
        (_binary(8), b"1234", "expecting 4 additional bytes for model 'cats'"),
        (_binary(8), b"123456789", "unexpected additional input data"),
        (_binary(4), b"1234", "unexpected total byte size 4 for input 'image', expecting 8"),
        (_binary(3, datatype="BYTES", shape=[1]), b"\1\0\0", "string length indicator"),
        (_binary(5, datatype="BYTES", shape=[1]), b"\2\0\0\0a", "string of length 2"),
        (_binary(5, datatype="BYTES", shape=[2]), b"\1\0\0\0a", "expecting 2"),
        (_binary(5, datatype="BYTES", shape=[0]), b"\1\0\0\0a", "expecting 0"),
        (_binary(8, datatype="BYTES", shape=[1]), b"\xff\xff\xff\xffabcd", "string of length"),
        (with_input() | {"id": 3}, b"", "'id': a text is wanted, got 3"),
        (with_input() | {"parameters": []}, b"", "parameters of the request"),
        (with_input() | {"parameters": {"a": {}}}, b"", "parameter 'a'"),
        (with_input() | {"parameters": {"a": None}}, b"", "parameter 'a'"),
        (with_input() | {"parameters": {"binary_data_output": 1}}, b"", "binary_data_output"),
        (with_input() | {"outputs": None}, b"", "'outputs'"),
        (with_input() | {"outputs": ["x"]}, b"", "'outputs': objects"),
        (with_input() | {"outputs": [{}]}, b"", "'name'"),
        (with_input() | {"outputs": [{"name": "x"}, {"name": "x"}]}, b"", "output 'x' already"),
        (
            with_input() | {"outputs": [{"name": "x", "parameters": {"classification": 3}}]},
            b"", "unknown parameter 'classification'",
        ),
        (
            with_input() | {"outputs": [{"name": "x", "parameters": {"binary_data": "yes"}}]},
            b"", "'binary_data'",
        ),
        ({"inputs": [*with_input()["inputs"]] * 2}, b"", "input 'image' already exists"),
    ],
)  # fmt: skip
def test_what_is_refused(given, rest, reason):
    with pytest.raises(RequestError) as caught:
        decoded(given, rest)
    assert caught.value.status == 400
    assert reason in str(caught.value)


def test_the_length_of_the_json():
    with pytest.raises(RequestError, match="expecting 5 more bytes"):
        decode_request(b"{}", 7, "cats")
    with pytest.raises(RequestError, match="Infer-Header-Content-Length"):
        decoded(_binary(8), length=False)
