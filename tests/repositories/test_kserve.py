"""What is written for KServe, read by a YAML parser and compared with `sigcam serve`."""

from __future__ import annotations

from pathlib import PurePath

import pytest
import yaml

from sigcam.cli.serve import command as serve_command
from sigcam.core.model_file import ModelFile
from sigcam.repositories.options import RepositoryOptions
from sigcam.repositories.write import export_repository
from sigcam.repositories.yaml import to_yaml
from sigcam.serve.repository import Repository


def documents(folder):
    return (
        yaml.safe_load((folder / "serving-runtime.yaml").read_text()),
        yaml.safe_load((folder / "inference-service.yaml").read_text()),
    )


def test_the_runtime_starts_sigcam_serve(tmp_path, make_artifact) -> None:
    options = RepositoryOptions(4, 500, 99, 2, "registry.example/sigcam:1")
    folder = export_repository([make_artifact()], tmp_path / "out", "kserve", options)
    runtime, service = documents(folder)
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"  # the name by which KServe finds it
    assert container["image"] == "registry.example/sigcam:1"
    name, *arguments = container["args"]
    assert name == "serve"
    # The command line itself reads them.
    read = serve_command.make_context("serve", arguments).params
    assert read["models"] == ("/mnt/models",)
    assert (read["host"], read["port"]) == ("0.0.0.0", 8080)
    assert (read["batch_size"], read["batch_delay"], read["queue_images"]) == (4, 500, 99)
    assert container["ports"] == [{"containerPort": 8080, "protocol": "TCP"}]
    assert container["resources"]["limits"]["cpu"] == "2"
    for probe, path in (
        ("startupProbe", "ready"), ("readinessProbe", "ready"), ("livenessProbe", "live"),
    ):  # fmt: skip
        assert container[probe]["httpGet"] == {"path": f"/v2/health/{path}", "port": 8080}
    predictor = service["spec"]["predictor"]["model"]
    assert predictor["runtime"] == runtime["metadata"]["name"]
    formats = [one["name"] for one in runtime["spec"]["supportedModelFormats"]]
    assert predictor["modelFormat"]["name"] in formats
    assert predictor["protocolVersion"] in runtime["spec"]["protocolVersions"]


def test_sigcam_serve_finds_the_models(tmp_path, make_artifact) -> None:
    sources = [f"a={make_artifact(head_input='features')}", f"b.v2={make_artifact()}"]
    folder = export_repository(sources, tmp_path / "out", "kserve")
    found = Repository([str(folder / "models")]).places()
    assert {name: [one.version for one in places] for name, places in found.items()} == {
        "a": ["1"], "b.v2": ["1"],
    }  # fmt: skip
    for places in found.values():
        ModelFile(places[0].path).verify()
    # Names in Kubernetes are small letters, digits and hyphens.
    assert documents(folder)[1]["metadata"]["name"] == "a"


def test_a_name_that_kubernetes_would_refuse(tmp_path, make_artifact) -> None:
    folder = export_repository([f"Net_B.2={make_artifact()}"], tmp_path / "out", "kserve")
    assert documents(folder)[1]["metadata"]["name"] == "net-b-2"


@pytest.mark.parametrize(
    "value",
    [
        {"a": {}, "b": [], "c": None, "d": True, "e": 0.5, "f": "x: y # z", "g": "no"},
        {"a": [{"b": [1, "2"], "c": {"d": [{"e": 1}, {"f": "é"}]}}, {"g": 2}]},
        {"deep": {"deeper": {"deepest": [{"a": 1, "b": 2}]}}},
        {"colon: key".replace(": ", "-"): "line\nbreak\ttab \"quoted\" 'too' \\"},
    ],
)
def test_yaml_comes_back(value) -> None:
    assert yaml.safe_load(to_yaml(value)) == value


def test_no_path_of_this_machine_is_written(tmp_path, make_artifact) -> None:
    for server in ("kserve", "triton", "ovms", "ray"):
        folder = export_repository([make_artifact()], tmp_path / server, server)
        for file in folder.rglob("*"):
            if file.suffix in (".yaml", ".json", ".pbtxt", ".py"):
                text = file.read_text()
                assert str(tmp_path) not in text
                assert PurePath("/home").as_posix() not in text
