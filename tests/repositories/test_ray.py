"""What is written for Ray Serve, and what its deployment answers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

import sigcam
from sigcam.core.model_file import ModelFile
from sigcam.repositories.options import RepositoryOptions
from sigcam.repositories.write import export_repository

RAY = os.environ.get("SIGCAM_TEST_RAY")
"""The Python of an environment that has ray[serve] and sigcam's own requirements."""


def test_applications(tmp_path, make_artifact) -> None:
    options = RepositoryOptions(4, 500, 99, 2)
    sources = [f"a={make_artifact()}", f"b={make_artifact()}"]
    folder = export_repository(sources, tmp_path / "out", "ray", options)
    document = yaml.safe_load((folder / "serve.yaml").read_text())
    assert [one["name"] for one in document["applications"]] == ["a", "b"]
    for one in document["applications"]:
        assert one["route_prefix"] == f"/v2/models/{one['name']}"
        assert one["import_path"] == "app:model"
        assert one["args"] == {"name": one["name"], "batch_size": 4, "batch_delay": 500}
        (deployment,) = one["deployments"]
        assert deployment["max_queued_requests"] == 99
        assert deployment["autoscaling_config"]["min_replicas"] == 2
        ModelFile(folder / "models" / one["name"] / "1" / "model.onnx").verify()
    compile((folder / "app.py").read_text(), "app.py", "exec")


def ask(address, body=None, **headers):
    """Returns status, headers and body of an answer."""
    request = urllib.request.Request(address, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.headers, exc.read()


@pytest.fixture(scope="module")
def running(tmp_path_factory, make_artifact):
    """The address of a model behind Ray Serve, and its file."""
    if RAY is None:
        pytest.skip(
            "SIGCAM_TEST_RAY names no Python with ray[serve]; docs/serving.md has the commands"
        )
    artifact = make_artifact()
    folder = tmp_path_factory.mktemp("ray") / "out"
    export_repository([f"tiny={artifact}"], folder, "ray")
    http = free_port()
    config = (folder / "serve.yaml").read_text().replace("port: 8000", f"port: {http}")
    (folder / "serve.yaml").write_text(config)
    address = f"127.0.0.1:{free_port()}"
    environ = {
        **os.environ,
        "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "RAY_ADDRESS": address,
        "RAY_AUTH_MODE": "disabled",  # loopback, for minutes
    }
    port = address.partition(":")[2]
    cluster = ["ray", "start", "--head", "--block", "--include-dashboard=false",
               "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={port}",
               f"--temp-dir={folder.parent / 'r'}"]  # fmt: skip
    serve = ["serve", "run", "serve.yaml"]
    with ExitStack() as stack:
        log = stack.enter_context((folder.parent / "log").open("wb"))
        stack.enter_context(started(cluster, folder, environ, log))
        begun = "Ray runtime started"
        wait(lambda: begun in (folder.parent / "log").read_text(), folder.parent / "log")
        stack.enter_context(started(serve, folder, environ, log))
        model = f"http://127.0.0.1:{http}/v2/models/tiny"
        wait(lambda: ask(f"{model}/ready")[0] == 200, folder.parent / "log")
        yield model, artifact


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


@contextmanager
def started(command, folder, environ, log):
    """A command in a process group of its own, which ends with all that it started."""
    program = Path(RAY).with_name(command[0])
    process = subprocess.Popen(
        [program, *command[1:]], cwd=folder, env=environ, stdout=log, stderr=log,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait(done, log):
    end = time.monotonic() + 240
    while True:
        with suppress(OSError):
            if done():
                return
        assert time.monotonic() < end, log.read_text(errors="replace")[-3000:]
        time.sleep(0.5)


def image():
    return np.random.default_rng(2).integers(0, 256, (70, 90, 3), np.uint8)


def request_of(file, outputs, **parameters):
    tensor = len(file).to_bytes(4, "little") + file
    sizes = {"binary_data_size": len(tensor)}
    head = {
        "inputs": [
            {"name": "encoded_image", "shape": [1], "datatype": "BYTES", "parameters": sizes}
        ],
        "outputs": [{"name": one, "parameters": {"binary_data": True}} for one in outputs],
        "parameters": parameters,
    }
    text = json.dumps(head).encode()
    return text + tensor, {"Inference-Header-Content-Length": str(len(text))}


@pytest.mark.slow
def test_the_same_map_as_a_session(running) -> None:
    address, artifact = running
    file = cv2.imencode(".png", image()[:, :, ::-1])[1].tobytes()
    body, headers = request_of(file, ["heatmap", "class_ids_out"], top_k=2)
    status, answered, content = ask(f"{address}/infer", body, **headers)
    assert status == 200, content
    head = json.loads(content[: int(answered["Inference-Header-Content-Length"])])
    rest = content[int(answered["Inference-Header-Content-Length"]) :]
    found = {}
    for one in head["outputs"]:
        size = one["parameters"]["binary_data_size"]
        kind = {"FP32": "<f4", "INT64": "<i8"}[one["datatype"]]
        found[one["name"]] = np.frombuffer(rest[:size], kind).reshape(one["shape"])
        rest = rest[size:]
    with sigcam.load(artifact, "ort") as session:
        wanted = session.explain(file, top_k=2)
    assert found["class_ids_out"].tolist() == [[one.class_id for one in wanted]]
    for got, one in zip(found["heatmap"][0], wanted, strict=True):
        np.testing.assert_allclose(got, one.heatmap, atol=1e-6)


@pytest.mark.slow
def test_errors(running) -> None:
    address, _ = running
    body, headers = request_of(b"no image", ["boxes"])
    status, _, content = ask(f"{address}/infer", body, **headers)
    assert status == 400, content
    assert "must be a JPEG or PNG or WebP file" in json.loads(content)["error"]
    assert ask(f"{address}/infer", b"{")[0] == 400
    assert ask(f"{address}/nothing")[0] == 404
    assert ask(f"{address}/versions/1/ready")[0] == 200
