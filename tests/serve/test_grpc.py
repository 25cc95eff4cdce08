"""gRPC by tritonclient, sync and aio: the same tensors as over HTTP, and the codes of Triton."""

from __future__ import annotations

import asyncio
import json
import time

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="needs the extra serve-grpc")
pytest.importorskip("starlette", reason="needs the extra serve")

import grpc
import tritonclient.grpc as client_package
import tritonclient.grpc.aio as aio_package
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

import sigcam
from tests.serve.test_metrics import of
from tests.support.live_server import TOGETHER, live_server

OPTIONS = ("--grpc-port", "0", "--log-format", "json")
TOKEN = "a-token"


@pytest.fixture(scope="module")
def server(artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    (folder / "other.onnx").write_bytes(artifact.read_bytes())
    with live_server(f"tiny={artifact}", str(folder), *OPTIONS, *TOGETHER) as found:
        yield found


@pytest.fixture
def client(server):
    with client_package.InferenceServerClient(server.grpc) as found:
        yield found


def encoded(*files):
    tensor = client_package.InferInput("encoded_image", [len(files)], "BYTES")
    return tensor.set_data_from_numpy(np.array(files, object))


def wanted(*names):
    return [client_package.InferRequestedOutput(name) for name in names]


def refused(code, call, *arguments, **more):
    with pytest.raises(InferenceServerException) as found:
        call(*arguments, **more)
    assert found.value.status() == f"StatusCode.{code}", found.value
    return found.value.message()


def test_health_and_metadata(client, server):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("tiny", "2")
    assert not client.is_model_ready("nope")
    assert client.get_server_metadata().name == "sigcam"
    told = client.get_model_metadata("tiny", as_json=True)
    assert told["versions"] == ["1"]
    config = client.get_model_config("tiny", as_json=True)["config"]
    assert json.loads(server.get("/v2/models/tiny/config"))["name"] == config["name"] == "tiny"
    assert {one["name"] for one in config["input"]} == {"image", "class_ids", "encoded_image"}
    assert {one["name"] for one in told["inputs"]} == {"image", "class_ids", "encoded_image"}


SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3
"""What grpc.health.v1 says."""


def test_health_as_grpc_has_it(server):
    with grpc.insecure_channel(server.grpc) as channel:
        stub, ask = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest
        for name in ("", "inference.GRPCInferenceService"):
            assert stub.Check(ask(service=name)).status == SERVING
        with pytest.raises(grpc.RpcError) as found:
            stub.Check(ask(service="nope"))
        assert found.value.code() == grpc.StatusCode.NOT_FOUND
        broken = channel.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.RpcError):
            broken(b"\xff\xff")
        watched = stub.Watch(ask(service="nope"))
        assert next(watched).status == UNKNOWN
        watched.cancel()


def test_who_watches_health_hears_of_the_end(artifact):
    begin = time.monotonic()
    with live_server(f"tiny={artifact}", *OPTIONS, "--drain-delay", "1.5") as server:
        channel = grpc.insecure_channel(server.grpc)
        told = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(told).status == SERVING
    assert [one.status for one in told] == [NOT_SERVING]  # and then the server ended
    assert time.monotonic() - begin < 20
    channel.close()


def test_a_file_gives_what_the_session_says(client, artifact, png):
    outputs = wanted("logits", "labels", "evidence", "boxes", "cams", "heatmap_png", "heatmap")
    found = client.infer(
        "tiny", [encoded(png)], outputs=outputs, request_id="7", parameters={"top_k": 2}
    )
    with sigcam.load(artifact, "ort") as session:
        explained = session.explain(png, top_k=2)
    assert found.get_response().id == "7"
    assert [one.decode() for one in found.as_numpy("labels")[0]] == [one.label for one in explained]
    assert found.as_numpy("evidence")[0] == pytest.approx([one.evidence for one in explained])
    boxes = [json.loads(one) for one in found.as_numpy("boxes")[0]]
    assert boxes == [[list(box) for box in one.boxes()] for one in explained]
    for place, one in enumerate(explained):
        assert np.array_equal(found.as_numpy("cams")[0, place], one.cam)
        assert np.array_equal(found.as_numpy("heatmap")[0, place], one.heatmap)
    assert found.as_numpy("heatmap_png")[0, 0].startswith(b"\x89PNG")


def test_raw_and_typed_tensors_and_http_give_the_same(server, client, artifact):
    array = np.random.default_rng(0).integers(0, 255, (2, 56, 56, 3), dtype=np.uint8)
    raw = client_package.InferInput("image", array.shape, "UINT8").set_data_from_numpy(array)
    by_raw = client.infer("tiny", [raw])
    message = service_pb2.ModelInferRequest(model_name="tiny")
    tensor = message.inputs.add(name="image", datatype="UINT8", shape=array.shape)
    tensor.contents.uint_contents.extend(array.ravel().tolist())
    with grpc.insecure_channel(server.grpc) as channel:
        by_typed = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message)
    assert list(by_typed.raw_output_contents) == list(by_raw.get_response().raw_output_contents)
    with sigcam.load(artifact, "ort") as session:
        outputs = session._model.run(array)
    assert np.array_equal(by_raw.as_numpy("logits"), outputs.logits)
    assert by_raw.as_numpy("class_ids_out").dtype == np.int64


def test_aio_clients_run_together(server, artifact, png):
    async def ask():
        async with aio_package.InferenceServerClient(server.grpc) as client:
            assert await client.is_server_ready()
            found = await asyncio.gather(
                *(client.infer("tiny", [encoded(png)], request_id=str(i)) for i in range(12))
            )
            return [(one.get_response().id, one.as_numpy("logits")) for one in found]

    found = asyncio.run(ask())
    assert [name for name, _ in found] == [str(i) for i in range(12)]
    with sigcam.load(artifact, "ort") as session:
        (one,) = session.explain(png)
    for _, logits in found:
        assert logits[0].argmax() == one.class_id
        # Batches of other sizes may round differently.
        np.testing.assert_allclose(logits, found[0][1], rtol=1e-5, atol=1e-6)


def test_a_stream_goes_on_after_an_error(client, png):
    answers = []
    client.start_stream(lambda result, error: answers.append((result, error)))
    client.async_stream_infer("tiny", [encoded(png)], request_id="1")
    client.async_stream_infer("nope", [encoded(png)], request_id="2")
    client.async_stream_infer("tiny", [encoded(png)], request_id="3")
    client.stop_stream()
    assert [error is None for _, error in answers] == [True, False, True]
    assert "unknown model: 'nope'" in answers[1][1].message()
    assert answers[2][0].get_response().id == "3"


def test_codes_are_those_of_triton(client, png):
    infer, metadata = client.infer, client.get_model_metadata
    assert "unknown model: 'nope'" in refused("NOT_FOUND", infer, "nope", [encoded(png)])
    assert "unknown model" in refused("NOT_FOUND", metadata, "tiny", "7")
    wrong = client_package.InferInput("pixels", [1], "BYTES")
    wrong.set_data_from_numpy(np.array([png], object))
    assert "unexpected inference input 'pixels'" in refused(
        "INVALID_ARGUMENT", infer, "tiny", [wrong]
    )
    assert "unexpected inference output" in refused(
        "INVALID_ARGUMENT", infer, "tiny", [encoded(png)], outputs=wanted("nope")
    )
    assert "unknown parameter" in refused(
        "INVALID_ARGUMENT", infer, "tiny", [encoded(png)], parameters={"topk": 1}
    )
    assert "Request timeout expired" in refused(
        "UNAVAILABLE", infer, "tiny", [encoded(png)], timeout=1
    )
    refused("UNIMPLEMENTED", client.register_system_shared_memory, "a", "/etc/passwd", 8)


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "RepositoryModelLoad"])
def test_bytes_that_are_no_message_are_the_clients_fault(server, method):
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        with pytest.raises(grpc.RpcError) as found:
            call(b"\x0a\xff\xff")
        assert found.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "the message can't be read" in found.value.details()
        with pytest.raises(grpc.RpcError) as found:
            channel.unary_unary("/inference.GRPCInferenceService/NoSuch")(b"")
        assert found.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_models_of_a_folder_come_and_go(client):
    def states():
        index = client.get_model_repository_index().models
        return {one.name: (one.version, one.state) for one in index}

    assert states() == {"other": ("1", "READY"), "tiny": ("1", "READY")}
    client.unload_model("other")
    assert states()["other"] == ("1", "UNAVAILABLE")
    assert not client.is_model_ready("other")
    client.load_model("other")
    assert client.is_model_ready("other")
    refused("INVALID_ARGUMENT", client.load_model, "other", config="{}")
    assert "no such model" in refused("NOT_FOUND", client.load_model, "../../etc")


def test_statistics_and_metrics_count_calls(server, client, png):
    def count():
        told = client.get_inference_statistics("tiny", as_json=True)["model_stats"][0]
        return int(told["inference_stats"]["success"]["count"])

    before = count()
    client.infer("tiny", [encoded(png, png)])
    assert count() == before + 1
    text = server.get("/metrics").decode()
    line = next(
        line for line in text.splitlines()
        if line.startswith('nv_inference_request_success{model="tiny"')
    )  # fmt: skip
    assert float(line.rpartition(" ")[2]) >= count()
    assert 'nv_inference_pending_request_count{model="tiny",version="1"} 0.0' in text


def test_calls_have_ids_and_lines_in_the_log(server, png):
    message = service_pb2.ModelInferRequest(model_name="tiny")
    tensor = message.inputs.add(name="encoded_image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(png)
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        metadata = (("x-request-id", "call-7"),)
        _, call = stub.ModelInfer.with_call(message, metadata=metadata)
        assert ("x-request-id", "call-7") in list(call.initial_metadata())
        (line,) = server.logged(request_id="call-7")
        assert (line["model"], line["status"], line["images"]) == ("tiny", 200, 1)
        assert line["name"] == "inference.GRPCInferenceService/ModelInfer"


@pytest.mark.slow
def test_a_token_is_wanted_except_for_probes(artifact, tmp_path, png):
    (tmp_path / "token").write_text(TOKEN)
    options = [*OPTIONS, "--token-file", str(tmp_path / "token")]
    with (
        live_server(f"tiny={artifact}", *options) as server,
        client_package.InferenceServerClient(server.grpc) as client,
    ):
        assert client.is_server_live()
        assert client.is_server_ready()
        for headers in ({}, {"authorization": "Bearer other"}, {"authorization": TOKEN}):
            message = refused(
                "UNAUTHENTICATED", client.infer, "tiny", [encoded(png)], headers=headers
            )
            assert "authorization: Bearer TOKEN" in message
            refused("UNAUTHENTICATED", client.get_model_metadata, "tiny", headers=headers)
        given = {"authorization": f"Bearer {TOKEN}"}
        client.infer("tiny", [encoded(png)], headers=given)
        assert client.is_model_ready("tiny", headers=given)


@pytest.mark.slow
def test_a_full_queue_and_too_long_messages_are_refused(artifact, png):
    options = [*OPTIONS, "--queue-images", "1", "--batch-size", "1"]
    options += ["--request-images", "1", "--request-bytes", "100000"]
    with (
        live_server(f"tiny={artifact}", *options) as server,
        client_package.InferenceServerClient(server.grpc) as client,
    ):
        long = client_package.InferInput("encoded_image", [1], "BYTES")
        long.set_data_from_numpy(np.array([bytes(2_000_000)], object))
        refused("RESOURCE_EXHAUSTED", client.infer, "tiny", [long])

        async def ask():
            async with aio_package.InferenceServerClient(server.grpc) as other:
                calls = (other.infer("tiny", [encoded(png)]) for _ in range(60))
                return await asyncio.gather(*calls, return_exceptions=True)

        found = asyncio.run(ask())
        errors = [one for one in found if isinstance(one, InferenceServerException)]
        assert {one.status() for one in errors} == {"StatusCode.UNAVAILABLE"}
        assert "the queue of model 'tiny' is full" in errors[0].message()
        assert len(errors) < len(found)


@pytest.mark.slow
def test_a_call_whose_client_has_gone_is_not_run_on(artifact, png):
    options = [*OPTIONS, "--max-passes", "1000000"]
    with (
        live_server(f"tiny={artifact}", *options) as server,
        client_package.InferenceServerClient(server.grpc) as client,
    ):
        client.infer("tiny", [encoded(png)])
        long = {"method": "rise", "masks": 500_000}
        begin = time.monotonic()
        refused(
            "DEADLINE_EXCEEDED", client.infer, "tiny", [encoded(png)],
            parameters=long, client_timeout=0.5,
        )  # fmt: skip
        client.infer("tiny", [encoded(png)], parameters={"method": "rise", "masks": 10})
        assert time.monotonic() - begin < 10  # the long one would hold this up for minutes
        text = server.get("/metrics")
        assert of(text, "nv_inference_request_failure", model="tiny", reason="CANCELED") == 1
        assert of(text, "nv_inference_pending_request_count", model="tiny") == 0
        (line,) = server.logged(status=499)
        assert line["model"] == "tiny"


def test_a_taken_port_is_an_error(artifact, server):
    port = server.grpc.rpartition(":")[2]
    with (
        pytest.raises(AssertionError, match=f"cannot listen on 127.0.0.1, port {port}"),
        live_server(f"tiny={artifact}", "--grpc-port", port),
    ):
        pass
