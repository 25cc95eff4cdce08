"""The clients that people use, against `sigcam serve` over real connections."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

import sigcam
from tests.support.live_server import HOST, TOGETHER, live_server

http = pytest.importorskip(
    "tritonclient.http", reason='the clients are missing: pip install "tritonclient[http]"'
)

OWN = ("logits", "class_ids_out", "evidence_logits", "cams")


@pytest.fixture(scope="module")
def served(artifact):
    """The port of a server, and a session of the same model."""
    running = live_server(f"tiny={artifact}", *TOGETHER)
    with running as server, sigcam.load(artifact, "ort") as session:
        yield server.port, session


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(4).integers(0, 256, (3, 56, 56, 3), np.uint8)


@pytest.fixture
def client(served):
    made = http.InferenceServerClient(f"{HOST}:{served[0]}", network_timeout=30)
    yield made
    made.close()


def tensor(name, array, datatype, binary=True, module=http):
    made = module.InferInput(name, list(array.shape), datatype)
    if module is http:
        made.set_data_from_numpy(array, binary_data=binary)
    else:
        made.set_data_from_numpy(array)
    return made


def tensor_inputs(images, ids, binary=True, module=http):
    return [
        tensor("image", images, "UINT8", binary, module),
        tensor("class_ids", ids, "INT64", binary, module),
    ]


def files_of(images, suffix=".png"):
    made = [cv2.imencode(suffix, one[:, :, ::-1])[1].tobytes() for one in images]
    return np.array(made, np.object_)


IDS = np.array([[-1, 2], [0, -2], [3, 1]])


def test_what_a_server_tells(client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("none")
    assert not client.is_model_ready("tiny", "2")
    assert client.get_server_metadata()["name"] == "sigcam"
    found = client.get_model_metadata("tiny")
    inputs = {one["name"]: (one["datatype"], one["shape"]) for one in found["inputs"]}
    assert inputs["image"] == ("UINT8", [-1, 56, 56, 3])
    assert inputs["class_ids"] == ("INT64", [-1, -1])
    assert [one["name"] for one in client.get_model_repository_index()] == ["tiny"]
    config = client.get_model_config("tiny")
    names = {one["name"] for one in config["input"]}
    assert {"image", "class_ids", "encoded_image"} <= names
    stats = client.get_inference_statistics("tiny")["model_stats"]
    assert [(one["name"], one["version"]) for one in stats] == [("tiny", "1")]


@pytest.mark.parametrize("by_binary", [True, False])
@pytest.mark.parametrize("wanted", [True, False, None])
def test_the_tensors_of_the_graph(served, client, images, by_binary, wanted) -> None:
    outputs = None
    if wanted is not None:
        outputs = [http.InferRequestedOutput(name, binary_data=wanted) for name in OWN]
    found = client.infer(
        "tiny", tensor_inputs(images, IDS, by_binary), outputs=outputs, request_id="a b"
    )
    expected = served[1]._model.run(images, IDS)
    assert found.get_response()["id"] == "a b"
    for name in OWN:
        got = found.as_numpy(name)
        want = getattr(expected, name.removesuffix("_out"))
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want, err_msg=name)


def test_encoded_images(served, client, images) -> None:
    files = files_of(images)
    names = ("heatmap", "heatmap_png", "boxes", "labels", "class_ids_out")
    found = client.infer(
        "tiny",
        [tensor("encoded_image", files, "BYTES")],
        outputs=[http.InferRequestedOutput(name) for name in names],
        parameters={"top_k": 2, "threshold": 0.5},
    )
    for row, file in enumerate(files):
        expected = served[1].explain(file, top_k=2)
        for place, one in enumerate(expected):
            assert found.as_numpy("class_ids_out")[row, place] == one.class_id
            assert found.as_numpy("labels")[row, place].decode() == one.label
            boxes = json.loads(found.as_numpy("boxes")[row, place])
            assert boxes == [list(box) for box in one.boxes(0.5)]
            np.testing.assert_allclose(
                found.as_numpy("heatmap")[row, place], one.heatmap, atol=1e-6
            )
            png = np.frombuffer(found.as_numpy("heatmap_png")[row, place], np.uint8)
            levels = cv2.imdecode(png, cv2.IMREAD_GRAYSCALE)
            assert np.abs(levels - 255 * one.heatmap).max() <= 0.501


def test_several_requests_at_once(served, images) -> None:
    with http.InferenceServerClient(f"{HOST}:{served[0]}", concurrency=4) as several:
        waiting = [
            several.async_infer("tiny", tensor_inputs(images[:1], IDS[:1])) for _ in range(8)
        ]
        found = [one.get_result().as_numpy("cams") for one in waiting]
    for one in found[1:]:
        np.testing.assert_array_equal(one, found[0])


def test_asyncio(served, images) -> None:
    aio = pytest.importorskip("tritonclient.http.aio")

    async def ask():
        async with aio.InferenceServerClient(f"{HOST}:{served[0]}") as client:
            assert await client.is_server_ready()
            asked = [client.infer("tiny", tensor_inputs(images, IDS)) for _ in range(5)]
            return [one.as_numpy("cams") for one in await asyncio.gather(*asked)]

    expected = served[1]._model.run(images, IDS).cams
    for one in asyncio.run(ask()):
        np.testing.assert_array_equal(one, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_name": "none"}, "Request for unknown model: 'none' is not found"),
        ({"model_version": "7"}, "Request for unknown model: 'tiny' version 7 is not found"),
        ({"outputs": ["none"]}, "unexpected inference output 'none' for model 'tiny'"),
        ({"inputs": ["image"]}, "class_ids"),
        ({"parameters": {"top_k": 0}}, "top_k must be at least 1"),
    ],
)
def test_errors_reach_the_caller(client, images, change, message) -> None:
    from tritonclient.utils import InferenceServerException

    inputs = tensor_inputs(images, IDS)
    if change.pop("inputs", None):
        inputs = [tensor("encoded_image", files_of(images[:1]), "BYTES"),
                  tensor("class_ids", IDS, "INT64")]  # fmt: skip
    outputs = [http.InferRequestedOutput(name) for name in change.pop("outputs", [])] or None
    call = {"model_name": "tiny", "inputs": inputs, "outputs": outputs, **change}
    with pytest.raises(InferenceServerException) as raised:
        client.infer(**call)
    assert message in raised.value.message()
    assert raised.value.status() in ("400", "404")


KSERVE = """
import asyncio, sys
import kserve, numpy as np
from kserve.inference_client import RESTConfig

async def ask(base, given, out):
    client = kserve.InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    inputs = []
    for name, datatype in (("image", "UINT8"), ("class_ids", "INT64")):
        one = kserve.InferInput(name, list(given[name].shape), datatype)
        one.set_data_from_numpy(given[name], binary_data=True)
        inputs.append(one)
    request = kserve.InferRequest("tiny", inputs, request_id="7")
    assert await client.is_server_live(base)
    assert await client.is_server_ready(base)
    assert await client.is_model_ready(base, "tiny")
    answer = await client.infer(base, request, model_name="tiny")
    await client.close()
    np.savez(out, **{one.name: one.as_numpy().reshape(one.shape) for one in answer.outputs})

asyncio.run(ask(sys.argv[1], np.load(sys.argv[2]), sys.argv[3]))
"""


def test_kserve_client(served, images, tmp_path) -> None:
    """In a process of its own: its messages have the names of tritonclient's."""
    if importlib.util.find_spec("kserve") is None:
        pytest.skip("KServe's client is missing: pip install kserve")
    given, found = tmp_path / "given.npz", tmp_path / "found.npz"
    np.savez(given, image=images, class_ids=IDS)
    base = f"http://{HOST}:{served[0]}"
    subprocess.run([sys.executable, "-c", KSERVE, base, given, found], check=True, timeout=120)
    expected = served[1]._model.run(images, IDS)
    with np.load(found) as outputs:
        for name in OWN:
            want = getattr(expected, name.removesuffix("_out"))
            np.testing.assert_array_equal(outputs[name], want, err_msg=name)
