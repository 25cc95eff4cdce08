"""Requests as clients write them, and what they read out of answers."""

from __future__ import annotations

import base64
import json
import struct

import numpy as np

INFER = "/v2/models/tiny/infer"


def encoded(*files, **more):
    """An input of encoded images, as JSON holds them."""
    return {
        "name": "encoded_image",
        "shape": [len(files)],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(one).decode() for one in files],
        **more,
    }


def body(*inputs, outputs=None, **more):
    """A request as JSON."""
    made = {"inputs": list(inputs), **more}
    if outputs is not None:
        made["outputs"] = [{"name": one} if isinstance(one, str) else one for one in outputs]
    return made


def elements(files):
    """The bytes of a BYTES tensor."""
    return b"".join(struct.pack("<I", len(one)) + one for one in files)


def binary(tensors, outputs=(), **more):
    """A request with binary data: its bytes, and its headers.

    tensors: name to (datatype, shape, bytes).
    """
    inputs = [
        {
            "name": name,
            "datatype": datatype,
            "shape": list(shape),
            "parameters": {"binary_data_size": len(data)},
        }
        for name, (datatype, shape, data) in tensors.items()
    ]
    wanted = [{"name": one, "parameters": {"binary_data": True}} for one in outputs]
    head = json.dumps({"inputs": inputs, **({"outputs": wanted} if wanted else {}), **more})
    content = head.encode() + b"".join(data for _, _, data in tensors.values())
    return {
        "content": content,
        "headers": {"Inference-Header-Content-Length": str(len(head.encode()))},
    }


DTYPES = {"FP32": "<f4", "INT64": "<i8", "UINT8": "u1"}


def tensors(response):
    """The outputs of an answer by name: arrays, or lists of bytes or texts."""
    assert response.status_code == 200, response.text
    length = response.headers.get("inference-header-content-length")
    content = response.content
    head = json.loads(content if length is None else content[: int(length)])
    rest = b"" if length is None else content[int(length) :]
    found = {}
    for one in head["outputs"]:
        size = one.get("parameters", {}).get("binary_data_size")
        if size is None:
            found[one["name"]] = one["data"]
            if one["datatype"] != "BYTES":
                data = np.array(one["data"], DTYPES[one["datatype"]])
                found[one["name"]] = data.reshape(one["shape"])
            continue
        data, rest = rest[:size], rest[size:]
        if one["datatype"] == "BYTES":
            found[one["name"]] = split(data)
        else:
            found[one["name"]] = np.frombuffer(data, DTYPES[one["datatype"]]).reshape(one["shape"])
    assert not rest
    return found


def split(data):
    found = []
    while data:
        (length,) = struct.unpack_from("<I", data)
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return found


def reason(response, status=400):
    """The sentence of an error."""
    assert response.status_code == status, (response.status_code, response.text)
    assert response.headers["content-type"] == "application/json"
    (key,) = response.json()
    assert key == "error"
    assert "Traceback" not in response.text
    return response.json()["error"]
