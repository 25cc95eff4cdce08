"""`sigcam build-engine`, and breaking a build off."""

import os
import signal
import threading

import onnx
import pytest
from click.testing import CliRunner

from sigcam.cli import main
from sigcam.convert.tensorrt.build import build_engine
from sigcam.convert.tensorrt.options import BuildOptions
from sigcam.core.sidecar import sidecar_path
from tests.support.tiny import artifact_graph, tiny_spec, write

trt = pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx is not installed")
RTX = "tensorrt_rtx"


@pytest.fixture
def model(tmp_path):
    spec = tiny_spec(profile="split")
    graph = artifact_graph(onnx, spec, head="mlp")
    return write(onnx, graph, tmp_path / "model.onnx", spec.to_json())


def test_ctrl_c_breaks_off_and_leaves_nothing(model, monkeypatch):
    """Sent while the builder works in its own thread; it then ends at its next step.

    It must have ended before Ctrl-C is passed on: a builder that still calls back when the
    interpreter goes away ends the process by abort().
    """
    steps, ended = [], []
    original = trt.Builder.build_serialized_network

    def build(self, network, config):
        begun = threading.Event()
        monitor = config.progress_monitor
        complete = monitor.step_complete

        def step(name, number):
            steps.append(monitor.stopped)
            if len(steps) == 1:
                os.kill(os.getpid(), signal.SIGINT)
                begun.wait(0.5)  # long enough for the main thread to see it
            return complete(name, number)

        monitor.step_complete = step
        try:
            return original(self, network, config)
        finally:
            ended.append(True)

    monkeypatch.setattr(trt.Builder, "build_serialized_network", build)
    with pytest.raises(KeyboardInterrupt):
        build_engine(model, options=BuildOptions(package=RTX), progress=False)
    assert ended
    assert steps[0] is False
    assert len(steps) <= 2
    assert [p.name for p in model.parent.iterdir()] == ["model.onnx"]


def test_the_command(model):
    done = CliRunner().invoke(
        main,
        ["build-engine", str(model), "--package", RTX, "--fp16", "--capability", "8.9",
         "--max-batch", "2", "--classes", "1/1/2", "--workspace", "64"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    made = model.with_name("model.rtx.engine")
    assert done.stdout == f"{made}\n"
    assert "building the engine" in done.stderr
    shown = CliRunner().invoke(main, ["info", str(made)])
    assert shown.exit_code == 0, shown.output
    for text in ("tensorrt_rtx", "float16", "8.9", "[1, 56, 56, 3] to [2, 56, 56, 3]", "cam"):
        assert text in shown.output
    sidecar_path(made).unlink()
    assert CliRunner().invoke(main, ["info", str(made)]).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--fp16", "--int8"], 2), (["--max-batch", "0"], 2), (["--classes", "3"], 2),
        (["--opt-batch", "9"], 2), (["--capability", "eight"], 2), (["--int8"], 2),
    ],
)  # fmt: skip
def test_wrong_usage_of_the_command(model, arguments, code):
    done = CliRunner().invoke(main, ["build-engine", str(model), "--package", RTX, *arguments])
    assert done.exit_code == code, done.output
    assert "rror" in done.stderr
    assert not list(model.parent.glob("*.engine*"))
