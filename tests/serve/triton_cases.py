"""Requests that are wrong in one way each, for `sigcam serve` and Triton alike.

`CASES` says of each how the two answers relate: "same": one status and one sentence, which ours may
go on after, or without what it says of the model's configuration; "status": one status, other
words; "client": Triton answers 500 or crashes where the client is to blame, and ours is 4xx;
"stricter": Triton takes it, ours says what is wrong; "milder": ours answers what Triton refuses.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

IMAGE = np.random.default_rng(0).integers(0, 256, (1, 56, 56, 3), np.uint8)
RAW, IDS = IMAGE.tobytes(), np.array([[-1]], np.int64).tobytes()
LOGITS = [{"name": "logits"}]
MODEL = "/v2/models/tiny"
LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Case:
    """A request, and how the two answers relate."""

    relation: str
    path: str
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"


def image(**changes: Any) -> dict[str, Any]:
    """The input `image`; None as a value leaves a field out."""
    whole = {"name": "image", "datatype": "UINT8", "shape": [1, 56, 56, 3],
             "data": IMAGE.ravel().tolist(), **changes}  # fmt: skip
    return {name: value for name, value in whole.items() if value is not ...}


def ids(**changes: Any) -> dict[str, Any]:
    whole = {"name": "class_ids", "datatype": "INT64", "shape": [1, 1], "data": [-1], **changes}
    return {name: value for name, value in whole.items() if value is not ...}


def infer(relation: str, body: Any, path: str = f"{MODEL}/infer", **headers: str) -> Case:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Case(relation, path, data, {k.replace("_", "-"): v for k, v in headers.items()})


def of(relation: str, *inputs: Any, **more: Any) -> Case:
    """A request of JSON to the tiny model."""
    return infer(relation, {"inputs": list(inputs), **more})


def binary(relation: str, inputs: Any, *blobs: bytes, length: str | None = None) -> Case:
    """A request with binary data."""
    head = json.dumps({"inputs": inputs, "outputs": LOGITS}).encode()
    given = str(len(head)) if length is None else length
    return Case(relation, f"{MODEL}/infer", head + b"".join(blobs), {LENGTH: given})


def by_size(name: str, size: Any, **changes: Any) -> dict[str, Any]:
    whole = image if name == "image" else ids
    return whole(data=..., parameters={"binary_data_size": size}, **changes)


def get(relation: str, path: str, method: str = "GET") -> Case:
    return Case(relation, path, None, {}, method)


def text(data: bytes, relation: str, **changes: Any) -> Case:
    """A request of encoded images, whose BYTES are given as they are."""
    tensor = {"name": "encoded_image", "datatype": "BYTES", "shape": [1, 1],
              "parameters": {"binary_data_size": len(data)}, **changes}  # fmt: skip
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "boxes"}]}).encode()
    return Case(relation, "/v2/models/tiny-explain/infer", head + data, {LENGTH: str(len(head))})


def element(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


BOTH = (image(), ids())
CASES: dict[str, Case] = {
    # What a server tells.
    "metadata of an unknown model": get("same", "/v2/models/none"),
    "metadata of an unknown version": get("same", f"{MODEL}/versions/9"),
    "metadata of a version that is no number": get("status", f"{MODEL}/versions/x"),
    "readiness of an unknown model": get("status", "/v2/models/none/ready"),
    "readiness of an unknown version": get("status", f"{MODEL}/versions/9/ready"),
    "an unknown path": get("same", "/v2/nothing"),
    "an unknown path of a model": get("same", f"{MODEL}/nothing"),
    "a folder above": get("same", "/v2/models/../tiny"),
    "a slash in a name": get("status", "/v2/models/a%2Fb"),
    "inferring by GET": get("same", f"{MODEL}/infer"),
    "health by POST": get("same", "/v2/health/live", "POST"),
    "metadata by DELETE": get("same", MODEL, "DELETE"),
    "inferring by PUT": get("same", f"{MODEL}/infer", "PUT"),
    "the index by GET": get("same", "/v2/repository/index"),
    # Which model.
    "an unknown model": infer("same", {"inputs": BOTH}, "/v2/models/none/infer"),
    "an unknown version": infer("same", {"inputs": BOTH}, f"{MODEL}/versions/9/infer"),
    "version 0": infer("same", {"inputs": BOTH}, f"{MODEL}/versions/0/infer"),
    "a version that is no number": infer("status", {"inputs": BOTH}, f"{MODEL}/versions/x/infer"),
    # The JSON.
    "no JSON": infer("client", b'{"inputs": ['),
    "something behind the JSON": infer("client", b'{"inputs": []} x'),
    "a list": infer("client", b"[]"),
    "nothing": infer("status", b""),
    "no inputs": infer("client", {}),
    "inputs that are no list": infer("client", {"inputs": {}}),
    "an empty list of inputs": infer("status", {"inputs": []}),
    "inputs of text": infer("status", {"inputs": ["image"]}),
    "an id that is a number": of("client", *BOTH, id=7),
    "parameters that are a text": of("client", *BOTH, parameters="x"),
    "parameters of parameters": of("status", *BOTH, parameters={"a": {"b": 1}}),
    "an unknown parameter": of("stricter", *BOTH, parameters={"a": 1}),
    "deep lists": infer("status", b'{"inputs":' + b"[" * 9999 + b"]" * 9999 + b"}"),
    # Inputs.
    "an unknown input": of("status", *BOTH, ids(name="x")),
    "an input twice": of("same", image(), image(), ids()),
    "an input without a name": of("client", image(name=...), ids()),
    "an input without a datatype": of("client", image(datatype=...), ids()),
    "an input without a shape": of("client", image(shape=...), ids()),
    "an input without data": of("same", image(data=...), ids()),
    "a name that is a number": of("client", image(name=5), ids()),
    "an unknown datatype": of("status", image(datatype="FOO"), ids()),
    "another datatype": of("same", image(datatype="FP32"), ids()),
    "class_ids of 32 bits": of("same", image(), ids(datatype="INT32")),
    "a shape that is a text": of("client", image(shape="1"), ids()),
    "a shape of texts": of("client", image(shape=["1", 56, 56, 3]), ids()),
    "a shape of fractions": of("client", image(shape=[1.0, 56, 56, 3]), ids()),
    "a negative size": of("client", image(shape=[-1, 56, 56, 3]), ids()),
    "a huge size": of("status", image(shape=[2**40, 2**40, 56, 3]), ids()),
    "an empty shape": of("status", image(shape=[], data=[1]), ids()),
    "another size": of("same", image(shape=[1, 55, 56, 3], data=[0] * (55 * 56 * 3)), ids()),
    "an axis too few": of("status", image(shape=[56, 56, 3]), ids()),
    "batches that differ": of("status", image(shape=[2, 56, 56, 3], data=[0] * 18816), ids()),
    "no class": of("stricter", image(), ids(shape=[1, 0], data=[])),
    "an unknown class": of("client", image(), ids(data=[77])),
    # Data as JSON.
    "too little data": of("client", image(data=[1, 2, 3]), ids()),
    "too much data": of("client", image(data=[0] * 9409), ids()),
    "texts as numbers": of("client", image(), ids(data=["-1"])),
    "fractions as whole numbers": of("client", image(), ids(data=[1.5])),
    "true as a number": of("client", image(), ids(data=[True])),
    "no list of data": of("client", image(), ids(data=-1)),
    "a number that a byte doesn't hold": of("stricter", image(data=[256] + [0] * 9407), ids()),
    "a negative byte": of("client", image(data=[-1] + [0] * 9407), ids()),
    "a number that 64 bits don't hold": of("client", image(), ids(data=[2**70])),
    # Outputs.
    "an unknown output": of("same", *BOTH, outputs=[{"name": "nope"}]),
    "outputs that are no list": of("client", *BOTH, outputs={}),
    "an output without a name": of("client", *BOTH, outputs=[{}]),
    "binary_data that is a number": of(
        "client", *BOTH, outputs=[{"name": "logits", "parameters": {"binary_data": 1}}]
    ),
    "binary_data_output that is a text": of(
        "client", *BOTH, parameters={"binary_data_output": "yes"}
    ),
    "an output twice": of("stricter", *BOTH, outputs=LOGITS * 2),
    # Binary data.
    "fewer bytes than the shape": binary(
        "status", [by_size("image", 100), by_size("class_ids", 8)], RAW[:100], IDS
    ),
    "more bytes than the shape": binary(
        "status", [by_size("image", 9416), by_size("class_ids", 8)], RAW, IDS, IDS
    ),
    "a body that is cut": binary(
        "same", [by_size("image", 9408), by_size("class_ids", 8)], RAW[:-5]
    ),
    "a body that goes on": binary(
        "same", [by_size("image", 9408), by_size("class_ids", 8)], RAW, IDS, b"more"
    ),
    "a header that is longer than the body": binary(
        "status", [by_size("image", 9408), by_size("class_ids", 8)], RAW, IDS, length="1000000"
    ),
    "a header that is shorter than the JSON": binary(
        "client", [by_size("image", 9408), by_size("class_ids", 8)], RAW, IDS, length="10"
    ),
    "a header's length that is negative": binary(
        "status", [by_size("image", 9408), by_size("class_ids", 8)], RAW, IDS, length="-1"
    ),
    "a header's length that is a word": binary(
        "status", [by_size("image", 9408), by_size("class_ids", 8)], RAW, IDS, length="abc"
    ),
    "binary_data_size as a text": binary(
        "client", [by_size("image", "9408"), by_size("class_ids", 8)], RAW, IDS
    ),
    "a negative binary_data_size": binary(
        "client", [by_size("image", -1), by_size("class_ids", 8)], RAW, IDS
    ),
    "binary data and data": binary(
        "same",
        [image(parameters={"binary_data_size": 9408}), by_size("class_ids", 8)], RAW, IDS,
    ),
    # BYTES.
    "a length beyond the end": text(struct.pack("<I", 100) + b"abc", "same"),
    "half a length": text(b"ab", "status"),
    "two elements for one": text(element(b"a") + element(b"b"), "status"),
    "one element for two": text(element(b"a"), "status", shape=[2, 1]),
    "no element for one": text(b"", "status"),
    "no image": text(element(b"no image"), "same"),
    "an empty image": text(element(b""), "same"),
}  # fmt: skip
