"""The same requests to `sigcam serve` and to Triton: tensors bit for bit, and what is refused."""

from __future__ import annotations

import asyncio
import http.client
import json
import re

import cv2
import numpy as np
import pytest

from sigcam.repositories.write import export_repository
from tests.serve.triton_cases import CASES
from tests.support.live_server import HOST, TOGETHER, live_server
from tests.support.triton_server import REASON, TRITON, running_triton, without_its_backend

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(TRITON is None, reason=REASON),
]
client_http = pytest.importorskip("tritonclient.http")


@pytest.fixture(scope="module")
def servers(tmp_path_factory, artifact):
    """The ports of both: ours first."""
    scratch = tmp_path_factory.mktemp("triton")
    repository = export_repository([f"tiny={artifact}"], scratch / "repository", "triton")
    without_its_backend(repository, "tiny")
    models = (f"tiny={artifact}", f"tiny-explain={artifact}")
    # Triton's queue has no end, and it runs the images of a request together.
    limits = ("--queue-images", "64", *TOGETHER)
    with running_triton(repository, scratch) as triton, live_server(*models, *limits) as ours:
        yield ours.port, triton.http


def sent(port, case):
    """The status and the error's sentence."""
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    try:
        connection.request(case.method, case.path, case.body, case.headers)
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    if answer.status == 200:
        return 200, ""
    return answer.status, json.loads(data.decode("utf-8", "replace"))["error"]


def told(sentence):
    """What Triton says, without the request's id and what it adds about its configuration."""
    sentence = re.sub(r"^\[request id: [^\]]*\] ", "", sentence)
    return re.split(r"\. NOTE: |\. Please ", sentence)[0]


@pytest.mark.parametrize("name", CASES)
def test_what_is_refused(servers, name) -> None:
    case = CASES[name]
    (own, ours), (theirs, wanted) = (sent(port, case) for port in servers)
    shown = f"Triton {theirs}: {wanted}\nsigcam {own}: {ours}"
    if case.relation == "milder":
        assert (own, theirs // 100) == (200, 4), shown
        return
    assert 400 <= own < 500, shown
    assert len(ours.split()) >= 2, shown
    if case.relation == "stricter":
        assert theirs == 200, shown
    elif case.relation == "client":
        assert theirs == 500, shown
    else:
        assert theirs in (own, 400), shown
        if case.relation == "same":
            assert own == theirs, shown
            assert ours.startswith(told(wanted)), shown


IMAGES = np.random.default_rng(6).integers(0, 256, (8, 56, 56, 3), np.uint8)
OWN = ("logits", "class_ids_out", "evidence_logits", "cams")


def inputs(count, classes, binary, module=client_http):
    ids = np.random.default_rng(count).integers(-4, 4, (count, classes))
    made = []
    for name, array, kind in (("image", IMAGES[:count], "UINT8"), ("class_ids", ids, "INT64")):
        one = module.InferInput(name, list(array.shape), kind)
        one.set_data_from_numpy(array, **({"binary_data": binary} if module is client_http else {}))
        made.append(one)
    return made


def same_tensors(one, other, names=OWN):
    for name in names:
        ours, theirs = one.as_numpy(name), other.as_numpy(name)
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes(), name


@pytest.mark.parametrize("by_binary", [True, False])
@pytest.mark.parametrize(("count", "classes"), [(1, 1), (2, 3), (8, 1)])
def test_tensors_over_http(servers, count, classes, by_binary) -> None:
    outputs = [client_http.InferRequestedOutput(name, binary_data=by_binary) for name in OWN]
    found = []
    for port in servers:
        with client_http.InferenceServerClient(f"{HOST}:{port}") as client:
            asked = inputs(count, classes, by_binary)
            found.append(client.infer("tiny", asked, outputs=outputs, request_id="7"))
    same_tensors(*found)
    assert found[0].get_response()["id"] == found[1].get_response()["id"] == "7"


@pytest.mark.parametrize("together", [False, True])
def test_tensors_over_asyncio(servers, together) -> None:
    """Images of several requests are run together, which may change the last bit of a sum."""
    from tritonclient.http import aio

    async def ask(port):
        async with aio.InferenceServerClient(f"{HOST}:{port}") as client:
            asked = [client.infer("tiny", inputs(count, 2, True)) for count in range(1, 9)]
            return await asyncio.gather(*asked) if together else [await one for one in asked]

    for one, other in zip(*(asyncio.run(ask(port)) for port in servers), strict=True):
        if not together:
            same_tensors(one, other)
            continue
        for name in OWN:
            np.testing.assert_allclose(one.as_numpy(name), other.as_numpy(name), atol=1e-6)


def test_raw_answers(servers) -> None:
    """The JSON itself, without a client that reads it: fields, types, shapes, order of bytes."""
    case = CASES["an unknown class"]
    good = json.loads(case.body)
    good["inputs"][1]["data"] = [2]
    good["outputs"] = [{"name": "logits"}]
    answers = []
    for port in servers:
        connection = http.client.HTTPConnection(HOST, port, timeout=60)
        connection.request("POST", case.path, json.dumps(good))
        answer = connection.getresponse()
        answers.append((answer.status, answer.getheader("content-type"), json.loads(answer.read())))
        connection.close()
    assert answers[0] == answers[1]


ENCODED = (
    "class_ids_out", "labels", "evidence", "probabilities", "boxes", "heatmap", "heatmap_uint8",
    "heatmap_png", "overlay_png", "overlay_jpeg", "explanations",
)  # fmt: skip
PARAMETERS = {
    "none": {},
    "two classes": {"top_k": 2},
    "by name": {"classes": '["blue", 0]'},
    "a threshold": {"threshold": 0.7, "classes": "Warm"},
    "many passes": {"method": "rise", "masks": 20, "seed": 3},
}


def rounded(data):
    return json.loads(data, parse_float=lambda digits: round(float(digits), 12))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("kind", PARAMETERS)
def test_encoded_images(servers, kind, suffix) -> None:
    image = np.random.default_rng(8).integers(0, 256, (90, 130, 3), np.uint8)
    files = np.array([[cv2.imencode(suffix, image)[1].tobytes()]], np.object_)
    one = client_http.InferInput("encoded_image", [1, 1], "BYTES")
    one.set_data_from_numpy(files)
    outputs = [client_http.InferRequestedOutput(name) for name in ENCODED]
    found = []
    for port in servers:
        with client_http.InferenceServerClient(f"{HOST}:{port}") as client:
            found.append(
                client.infer("tiny-explain", [one], outputs=outputs, parameters=PARAMETERS[kind])
            )
    for name in ENCODED:
        ours, theirs = (answer.as_numpy(name) for answer in found)
        if name == "explanations":  # Triton's NumPy is another one, whose exp differs by a bit
            for one, other in zip(ours.ravel(), theirs.ravel(), strict=True):
                assert rounded(one) == rounded(other)
        elif ours.dtype == np.object_:
            assert ours.tolist() == theirs.tolist(), name
        else:
            assert ours.tobytes() == theirs.tobytes(), name
