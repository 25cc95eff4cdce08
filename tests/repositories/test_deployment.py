"""The container and the Kubernetes example say what `sigcam serve` understands."""

from __future__ import annotations

import json

import pytest
import yaml

from sigcam.cli.serve import command as serve_command
from tests.support.paths import ROOT

FOLDER = ROOT / "examples" / "deployment"


def read(arguments):
    """The parameters of `sigcam serve` with these arguments, of which the first is its name."""
    assert arguments[0] == "serve"
    return serve_command.make_context("serve", list(arguments[1:])).params


def test_the_container_starts_the_server() -> None:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    last = {line.partition(" ")[0]: line.partition(" ")[2] for line in lines}
    assert json.loads(last["ENTRYPOINT"]) == ["sigcam"]
    found = read(json.loads(last["CMD"]))
    assert (found["models"], found["host"]) == (("/models",), "0.0.0.0")
    assert str(found["port"]) == last["EXPOSE"]
    assert int(last["USER"].partition(":")[0]) > 0


def test_what_is_copied_into_the_container_is_there() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    text = (FOLDER / "Dockerfile").read_text()
    (named,) = [line.partition("=")[2] for line in text.splitlines() if line[:3] == "ARG"]
    assert set(named.split(",")) <= extras.keys()
    assert {"gpu", "serve"} <= extras.keys()


@pytest.fixture(scope="module")
def deployment():
    documents = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    found = {one["kind"]: one for one in documents}
    assert set(found) == {"Deployment", "Service", "PodDisruptionBudget"}
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    return found["Deployment"]["spec"]["template"]["spec"]


def test_the_example_for_kubernetes(deployment) -> None:
    (container,) = deployment["containers"]
    found = read(container["args"])
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert found["port"] == ports["http"]
    for name, path in (("startup", "ready"), ("readiness", "ready"), ("liveness", "live")):
        probe = container[f"{name}Probe"]["httpGet"]
        assert probe == {"path": f"/v2/health/{path}", "port": "http"}
    # The pod is killed after the server had its time to end.
    ends = found["drain_delay"] + found["drain_timeout"]
    assert deployment["terminationGracePeriodSeconds"] > ends
    mounted = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    assert found["models"][0] in mounted
    assert str(found["token_file"].parent) in mounted
    assert set(mounted.values()) == {one["name"] for one in deployment["volumes"]}
