"""`sigcam export --method`: gradient CAMs and the head graph from the command line."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from sigcam.cli import main
from sigcam.core.artifact import read_spec
from sigcam.export import METHODS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finer(work, tmp_path_factory):
    """The toy model with finercam, its classes named at run time, and its head graph."""
    path = tmp_path_factory.mktemp("finer") / "finer.onnx"
    options = ["--method", "finercam", "--gamma", "0.5", "--similar", "1", "--head-graph"]
    options += ["--classes", "input", "--out", str(path)]
    made = CliRunner().invoke(main, ["export", "--sigmoid-branch", str(work.branch), *options])
    assert made.exit_code == 0, made.stderr
    assert made.stdout.split() == [str(path), str(path.with_name("finer.head.onnx"))]
    return path


def test_the_spec_says_how_it_was_made(finer, cli):
    spec = read_spec(finer)
    assert (spec.method, spec.purpose, spec.kind) == ("finercam", "discriminate", "artifact")
    assert spec.method_options == {"gamma": 0.5, "similar": 1}
    assert spec.head_input == "features"
    head = read_spec(finer.with_name("finer.head.onnx"))
    assert (head.kind, head.method_options) == ("head", spec.method_options)
    shown = cli("info", finer)
    assert "finercam (gamma 0.5, similar 1), from the sigmoid branch" in shown.stdout
    assert "takes features" in cli("info", finer.with_name("finer.head.onnx")).stdout


def test_ablationcam_runs_on_the_head_graph(finer, work, cli):
    found = cli("explain", finer, work.data, "--json", "--method", "ablationcam", "--class", "red")
    assert found.exit_code == 0, found.stderr
    (one,) = json.loads(found.stdout.splitlines()[0])["explanations"]
    assert (one["method"], one["label"]) == ("ablationcam", "red")
    assert one["passes"] > 1


def test_the_help_names_every_method(cli):
    text = " ".join(cli("export", "--help").stdout.split())
    for method in METHODS:
        assert method in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--method", "gradcan"], "method must be one of cam, gradcam"),
        (["--method", "layercam", "--nwc"], "has a weight for each position"),
        (["--gamma", "1"], "gamma is no option of cam"),
        (["--method", "gradcam", "--target-layer", "con"], "the model has no layer 'con'"),
    ],
)
def test_options_that_cannot_be(work, cli, tmp_path, options, says):
    found = cli("export", "--sigmoid-branch", work.branch, *options, "--out", tmp_path / "m.onnx")
    assert found.exit_code in (1, 2)
    assert says in found.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["scorecam", "eigencam"])
def test_an_evaluation_names_the_methods_that_it_scores(work, cli, method, tmp_path):
    model = ["--arch", work.arch, "--num-classes", 2, "--size", 32, "--branch", "softmax"]
    out = tmp_path / f"{method}.onnx"
    assert cli("export", *model, "--method", method, "--out", out).exit_code == 0
    refused = cli("evaluate", out, "--data", work.data, "--out", tmp_path / "report")
    assert refused.exit_code == 2
    assert f"has the method {method}, whose maps the runtime makes" in refused.stderr
    assert not (tmp_path / "report").exists()
    assert "--method gradcam or --method reciprocam" in refused.stderr
    instead = tmp_path / "m.onnx"
    assert cli("export", *model, "--method", "reciprocam", "--out", instead).exit_code == 0
    found = cli("evaluate", instead, "--data", work.data, "--out", tmp_path / "report")
    assert found.exit_code == 0, found.stderr
