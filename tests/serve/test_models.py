"""Models by name and version, of files and folders, which come and go while the server runs."""

from __future__ import annotations

import shutil
import threading
import time

import pytest

from sigcam.core.errors import ArtifactError, UsageError
from sigcam.serve.options import ServeOptions
from sigcam.serve.repository import Repository
from tests.serve.requests import INFER, body, encoded, reason, tensors


@pytest.fixture
def folder(tmp_path, artifact, make_artifact):
    """one.onnx; cats in the versions 1, 2 and 10, which differ in their classes' names."""
    for version in ("1", "2", "10"):
        place = tmp_path / "cats" / version
        place.mkdir(parents=True)
        names = tuple(f"{name}{version}" for name in ("red", "green", "blue", "warm"))
        shutil.copy(make_artifact(class_names=names), place / "model.onnx")
    shutil.copy(artifact, tmp_path / "one.onnx")
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cats" / "drafts").mkdir()
    shutil.copy(artifact, tmp_path / "one.head.onnx")
    return tmp_path


def places(*sources):
    found = Repository([str(one) for one in sources]).places()
    return {name: [one.version for one in versions] for name, versions in found.items()}


def test_what_is_found(folder, tmp_path):
    assert places(folder) == {"cats": ["1", "2", "10"], "one": ["1"]}
    file = folder / "one.onnx"
    assert places(file) == {"one": ["1"]}
    assert places(f"mine={file}") == {"mine": ["1"]}
    assert places("hf://owner/cats@v1") == {"cats": ["1"]}
    assert places("models/net.rtx.engine", "b=b.engine") == {"net": ["1"], "b": ["1"]}


def test_names_that_two_models_have(folder, artifact):
    with pytest.raises(UsageError, match="two models are named 'one'"):
        Repository([str(folder), f"one={artifact}"])


def test_folders_without_models(tmp_path):
    with pytest.raises(UsageError, match="there is no model in"):
        Repository([str(tmp_path)])
    with pytest.raises(UsageError, match="needs a model"):
        Repository([])


def test_a_version_with_two_files(folder, artifact):
    shutil.copy(artifact, folder / "cats" / "2" / "other.onnx")
    with pytest.raises(UsageError, match="holds 2 models"):
        Repository([str(folder)])


def test_versions(serve, folder, png):
    client = serve(folder)
    asked = body(encoded(png), outputs=["labels"])

    def label(path):
        return tensors(client.post(f"/v2/models/{path}/infer", json=asked))["labels"]

    assert label("cats") == ["red10"]  # the newest, by number
    assert label("cats/versions/2") == ["red2"]
    assert label("one") == ["red"]
    assert client.get("/v2/models/cats").json()["versions"] == ["1", "2", "10"]
    assert client.get("/v2/models/cats/versions/2").json()["versions"] == ["2"]
    assert client.get("/v2/models/cats/versions/2/ready").json() == {"name": "cats", "ready": True}
    assert "version 3 is not found" in reason(client.get("/v2/models/cats/versions/3"), 404)
    told = client.get("/v2/models/cats/versions/2/stats").json()["model_stats"]
    assert [(one["version"], one["inference_count"]) for one in told] == [("2", 1)]
    assert len(client.get("/v2/models/cats/stats").json()["model_stats"]) == 3
    assert len(client.get("/v2/models/stats").json()["model_stats"]) == 4


def index(client, **asked):
    found = client.post("/v2/repository/index", json=asked).json()
    return {(one["name"], one["version"]): one["state"] for one in found}


def test_load_and_unload(serve, folder, make_artifact, png):
    client = serve(folder)
    assert set(index(client).values()) == {"READY"}
    assert client.post("/v2/repository/models/one/unload").status_code == 200
    assert index(client)["one", "1"] == "UNAVAILABLE"
    assert ("one", "1") not in index(client, ready=True)
    assert "no available versions" in reason(client.get("/v2/models/one"), 404)
    assert "no available versions" in reason(client.post("/v2/models/one/infer"), 404)
    assert client.get("/v2/health/ready").status_code == 200
    shutil.copy(make_artifact(class_names=tuple("abcd")), folder / "one.onnx")
    assert client.post("/v2/repository/models/one/load").status_code == 200
    asked = body(encoded(png), outputs=["labels"])
    assert tensors(client.post("/v2/models/one/infer", json=asked))["labels"] == ["a"]
    (folder / "new").mkdir()
    shutil.copytree(folder / "cats" / "2", folder / "new" / "7")
    assert index(client)["new", "7"] == "UNAVAILABLE"
    assert client.post("/v2/repository/models/new/load", json={}).status_code == 200
    assert tensors(client.post("/v2/models/new/infer", json=asked))["labels"] == ["red2"]
    shutil.rmtree(folder / "cats" / "10")
    assert client.post("/v2/repository/models/cats/load").status_code == 200
    assert tensors(client.post("/v2/models/cats/infer", json=asked))["labels"] == ["red2"]
    assert client.get("/v2/models/cats").json()["versions"] == ["1", "2"]


def test_a_model_that_cannot_be_loaded_leaves_the_old_one(serve, folder, png):
    client = serve(folder)
    (folder / "one.onnx").write_bytes(b"no model")
    assert "failed to load 'one'" in reason(client.post("/v2/repository/models/one/load"))
    asked = body(encoded(png), outputs=["labels"])
    assert tensors(client.post("/v2/models/one/infer", json=asked))["labels"] == ["red"]
    for name in ("none", "..", "%2e%2e%2fone", "cats%2f1"):
        for action in ("load", "unload"):
            reason(client.post(f"/v2/repository/models/{name}/{action}"), 404)
    told = reason(
        client.post("/v2/repository/models/one/load", json={"parameters": {"config": "{}"}})
    )
    assert "'config' isn't known" in told
    reason(client.post("/v2/repository/models/one/load", content=b"{"))
    reason(client.post("/v2/repository/index", json={"ready": 1}))


def test_a_folder_that_is_gone(serve, folder, png):
    client = serve(folder)
    shutil.rmtree(folder)
    asked = body(encoded(png), outputs=["labels"])
    assert client.post("/v2/models/one/infer", json=asked).status_code == 200
    for path in ("index", "models/one/load"):
        assert "cannot list" in reason(client.post(f"/v2/repository/{path}"))


def test_only_models_of_folders_may_be_changed_and_only_where_that_is_allowed(
    serve, folder, client
):
    for one in (client, serve(folder, options=ServeOptions(model_control=False))):
        for action in ("load", "unload"):
            told = reason(one.post(f"/v2/repository/models/one/{action}"))
            assert f"model {action} is not allowed" in told


def test_a_model_in_use_is_not_freed(serve, folder, monkeypatch, png):
    client = serve(folder)
    served = client.service.models.get("one")
    running, go = threading.Event(), threading.Event()
    run = served.model.run

    def slow(*arguments, **more):
        running.set()
        assert go.wait(10)
        return run(*arguments, **more)

    monkeypatch.setattr(served.model, "run", slow)
    answers = {}

    def ask(key, *arguments, **more):
        answers[key] = client.post(*arguments, **more)

    asked = body(encoded(png), outputs=["labels"])
    first = threading.Thread(
        target=ask, args=("infer", "/v2/models/one/infer"), kwargs={"json": asked}
    )
    first.start()
    assert running.wait(10)
    second = threading.Thread(target=ask, args=("unload", "/v2/repository/models/one/unload"))
    second.start()
    while client.get("/v2/models/one").status_code == 200:
        time.sleep(0.01)
    assert "unload" not in answers
    go.set()
    first.join()
    second.join()
    assert tensors(answers["infer"])["labels"] == ["red"]
    assert answers["unload"].status_code == 200


def test_a_server_that_cannot_load_its_models(tmp_path, serve):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError):
        serve(tmp_path / "bad.onnx")


def test_a_loading_server_is_not_ready(serve, artifact, png):
    client = serve(f"tiny={artifact}")
    models = client.service.models
    models._loaded, before = False, models._served
    models._served = {}
    assert client.get("/v2/health/ready").status_code == 400
    assert client.get("/v2/health/live").json() == {"live": True}
    assert "loading" in reason(client.post(INFER, json=body(encoded(png))), 503)
    models._loaded, models._served = True, before
    assert client.get("/v2/health/ready").json() == {"live": True, "ready": True}


def test_a_draining_server(client, png):
    client.service.draining = True
    assert client.get("/v2/health/ready").status_code == 400
    assert client.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": False}
    assert client.post(INFER, json=body(encoded(png))).status_code == 200
    client.service.closing = True
    assert "about to end" in reason(client.post(INFER, json=body(encoded(png))), 503)
    assert client.get("/v2/health/live").status_code == 200
