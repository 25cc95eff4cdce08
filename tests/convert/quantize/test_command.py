"""`sigcam quantize` and what `sigcam info` says of its file."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from sigcam.cli import main


def run(*arguments):
    return CliRunner().invoke(main, [str(one) for one in arguments])


SMALL = ["--calibration", 8, "--held-out", 8, "--threads", 1]


def test_the_file_and_what_is_said(artifacts, images, tmp_path):
    out = tmp_path / "model.int8.onnx"
    done = run(
        "quantize", artifacts(method="cam"), "--data", images, "--out", out, *SMALL,
        "--min-agreement", 0, "--keep-float", "node_linear",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert done.stdout.split() == [str(out)]
    assert "calibrating 5 layers on 8 images" in done.stderr
    shown = run("info", out).stdout
    assert "precision      int8" in shown
    assert "in float32     node_linear" in shown
    assert "calibrated on  8 other images" in shown
    fidelity = json.loads(run("info", out, "--json").stdout)["fidelity"]
    assert f"{fidelity['mean_correlation']:.4f} in the mean" in shown
    assert "fidelity" not in run("info", artifacts(method="cam")).stdout


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_ways_to_calibrate(artifacts, images, tmp_path, method):
    out = tmp_path / "model.int8.onnx"
    done = run(
        "quantize", artifacts(method="cam"), "--data", images, "--out", out, *SMALL,
        "--min-agreement", 0, "--min-correlation", 0.95, "--calibration-method", method,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert done.stdout.split() == [str(out)]


def test_a_refusal_writes_nothing(artifacts, images, tmp_path):
    out = tmp_path / "model.int8.onnx"
    done = run(
        "quantize", artifacts(method="cam"), "--data", images, "--out", out, *SMALL,
        "--min-correlation", 1, "--rounds", 1,
    )  # fmt: skip
    assert done.exit_code == 1
    assert "round 1: keeping node_" in done.stderr
    assert "the layers whose own rounding moves their output most are node_" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "code", "message"),
    [
        (["--keep-float", "nothing"], 2, "has no layers nothing"),
        (["--calibration", 3], 2, "at least 8 calibration images"),
        (["--calibration", 300], 1, "must have 308 different images"),
        (["--precision", "fp16", "--wide-weights"], 2, "wide_weights belong"),
    ],
)
def test_wrong_usage(artifacts, images, tmp_path, wrong, code, message):
    done = run(
        "quantize", artifacts(method="cam"), "--data", images, "--out", tmp_path / "o.onnx",
        *SMALL, *wrong,
    )  # fmt: skip
    assert (done.exit_code, message in done.stderr) == (code, True), done.stderr
