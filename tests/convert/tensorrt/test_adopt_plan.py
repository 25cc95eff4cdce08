"""Plans of trtexec: taken only if they answer as their model does."""

import shutil

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from sigcam.cli.build_engine import command
from sigcam.convert.tensorrt import adopt
from sigcam.convert.tensorrt.adopt import adopt_plan
from sigcam.convert.tensorrt.options import BuildOptions
from sigcam.core.errors import ArtifactError, BackendUnavailableError, UsageError
from sigcam.core.sidecar import read_sidecar
from sigcam.images.preprocess import place
from sigcam.runtime.backends.base import HeatmapRequest
from tests.support.fake_tensorrt import SHAPES
from tests.support.tiny import artifact_graph, head_graph, tiny_spec, write

SPEC = tiny_spec(profile="split")


@pytest.fixture
def gpu(machine, monkeypatch):
    monkeypatch.setattr(adopt, "driver", machine.cuda)
    machine.model = write(
        onnx, artifact_graph(onnx, SPEC, head="mlp"), machine.folder / "m.onnx", SPEC.to_json()
    )
    machine.plan = machine.folder / "m.plan"
    shutil.copy(machine.model, machine.plan)
    return machine


def changed(path, change):
    model = onnx.load(str(path))
    change(model.graph)
    path.write_bytes(model.SerializeToString())


def written(folder):
    return sorted(one.name for one in folder.iterdir() if "engine" in one.name)


def test_a_plan_of_the_model(gpu, feeds):
    made = adopt_plan(gpu.model, gpu.plan, None, BuildOptions(tf32=True, hardware="capability"))
    assert made == gpu.folder / "m.engine"
    assert made.read_bytes() == gpu.plan.read_bytes()
    found = read_sidecar(made)
    assert found.shapes == SHAPES
    assert (found.gpu, found.capabilities, found.hardware) == ("Fake GPU", ("8.6",), "capability")
    assert (found.precision, found.tf32, found.source) == ("float32", True, "m.onnx")
    backend = gpu.open(made)
    assert backend.infer(feeds(2))["logits"].shape == (2, 4)


def test_a_plan_with_half_outputs_runs_the_kernels_of_float16(gpu, feeds, monkeypatch):
    """trtexec --outputIOFormats=fp16:chw leaves features and CAM weights so."""
    gpu.module.half = {"features", "cam_weights"}
    backend = gpu.open(adopt_plan(gpu.model, gpu.plan, None, BuildOptions(precision="float16")))
    placed = tuple(place(SPEC.preprocessing, 40, 50) for _ in range(2))
    launch, plans = backend._kernel.launch, []
    monkeypatch.setattr(
        backend._kernel, "launch", lambda plan, **given: plans.append(plan) or launch(plan, **given)
    )
    _, made = backend.infer_heatmaps(feeds(2), ["logits"], HeatmapRequest(placed, SPEC.nwc))
    assert made.heatmaps[0].shape == (2, 40, 50)
    assert [plan.inputs.half for plan in plans] == [True]


def test_the_command(gpu):
    done = CliRunner().invoke(
        command, [str(gpu.model), "--from-plan", str(gpu.plan), "--package", "tensorrt", "--tf32"]
    )
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == str(gpu.folder / "m.engine")
    assert read_sidecar(gpu.folder / "m.engine").tf32
    done = CliRunner().invoke(command, [str(gpu.model), "--from-plan", str(gpu.folder / "none")])
    assert done.exit_code == 2
    assert "does not exist" in done.output


@pytest.mark.parametrize("name", ["fc.weight", "anything"])
def test_a_plan_of_other_weights_is_refused(gpu, name):
    def change(graph):
        floats = [one for one in graph.initializer if one.data_type == 1 and len(one.dims) > 1]
        array = onnx.numpy_helper.to_array(floats[0 if name == "anything" else -1])
        turned = onnx.numpy_helper.from_array(
            np.ascontiguousarray(array[::-1] * 1.5), floats[0 if name == "anything" else -1].name
        )
        floats[0 if name == "anything" else -1].CopyFrom(turned)

    changed(gpu.plan, change)
    with pytest.raises(
        ArtifactError, match=r"m\.plan isn't .*m\.onnx in float32: its \w+ is off by"
    ):
        adopt_plan(gpu.model, gpu.plan, None, BuildOptions())
    assert written(gpu.folder) == []


def test_a_plan_with_other_tensors_is_refused(gpu):
    other = tiny_spec(profile="fused")
    write(onnx, artifact_graph(onnx, other, head="mlp"), gpu.plan, other.to_json())
    with pytest.raises(ArtifactError, match=r"has the outputs cams .*, its model .*cam_weights"):
        adopt_plan(gpu.model, gpu.plan, None, BuildOptions())
    assert written(gpu.folder) == []


def test_what_else_is_refused(gpu, monkeypatch):
    with pytest.raises(UsageError, match=r"must end in \.engine, got m\.plan"):
        adopt_plan(gpu.model, gpu.plan, gpu.plan, BuildOptions())
    with pytest.raises(ArtifactError, match="cannot read"):
        adopt_plan(gpu.model, gpu.folder / "none.plan", None, BuildOptions())
    head = tiny_spec(kind="head", head_input="features")
    path = write(onnx, head_graph(onnx, head), gpu.folder / "m.head.onnx", head.to_json())
    with pytest.raises(UsageError, match="is a head graph"):
        adopt_plan(path, gpu.plan, None, BuildOptions())
    gpu.module.refuses = True
    with pytest.raises(
        ArtifactError, match=r"can't load .*a broken engine; build it with the trtexec"
    ):
        adopt_plan(gpu.model, gpu.plan, None, BuildOptions())
    gpu.cuda.missing = "there is no libcuda"
    with pytest.raises(BackendUnavailableError, match="no libcuda"):
        adopt_plan(gpu.model, gpu.plan, None, BuildOptions())
    assert written(gpu.folder) == []


def test_an_older_engine_stays_where_a_plan_is_refused(gpu):
    made = adopt_plan(gpu.model, gpu.plan, None, BuildOptions())
    before = made.read_bytes(), made.with_name("m.engine.json").read_bytes()
    gpu.module.depends_on_data = {"logits"}
    with pytest.raises(ArtifactError, match=r"m\.plan can't be run: .*can't tell the size"):
        adopt_plan(gpu.model, gpu.plan, None, BuildOptions())
    assert (made.read_bytes(), made.with_name("m.engine.json").read_bytes()) == before
