"""What the exported file looks like from outside: operators, constants, names, noise."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import pytest

from sigcam.core.errors import UsageError
from sigcam.core.spec import ClassSelection
from sigcam.export import ExportOptions, export_artifact
from tests.support.methods import WITH_WEIGHTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=WITH_WEIGHTS)
def files(request, tmp_path_factory, dual):
    """Two artifacts that meet every operator and sharing of constants."""
    from sigcam.core.spec import Preprocessing

    folder = tmp_path_factory.mktemp("form")
    preprocessing = Preprocessing(*dual.input_size, rule="stretch")
    export_artifact(
        dual,
        folder / "a.onnx",
        ExportOptions(
            method=request.param,
            classes=ClassSelection("input"),
            preprocessing=preprocessing,
            opset=20,
        ),
    )
    export_artifact(
        dual,
        folder / "b.onnx",
        ExportOptions(
            method=request.param,
            classes=ClassSelection("topk", 2),
            preprocessing=preprocessing,
            branch="softmax",
            profile="split",
            sigmoid_logits=True,
        ),
    )
    return [onnx.load(folder / name) for name in ("a.onnx", "b.onnx")]


def test_only_standard_operators(files):
    for model, opset in zip(files, (20, 18), strict=True):
        assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)]
        assert model.ir_version <= 10
        assert not model.functions
        for node in model.graph.node:
            assert node.domain == ""
            # Refused by TensorRT's parser in one form or another, or slow.
            assert node.op_type not in {"GatherND", "ScatterElements", "ScatterND", "Loop", "If"}


def test_no_constant_is_stored_twice(files):
    for model in files:
        values = [onnx.numpy_helper.to_array(i) for i in model.graph.initializer]
        matrices = [v.tobytes() for v in values if v.dtype == np.float32 and v.size > 1]
        assert len(matrices) > 5
        assert len(set(matrices)) == len(matrices)
        used = {name for node in model.graph.node for name in node.input}
        assert {i.name for i in model.graph.initializer} <= used


def test_dynamic_sizes_are_named(files):
    model = files[0]

    def shape(value):
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    shapes = {v.name: shape(v) for v in (*model.graph.input, *model.graph.output)}
    assert shapes == {
        "image": ["batch", 24, 32, 3],
        "class_ids": ["batch", "classes"],
        "logits": ["batch", 7],
        "class_ids_out": ["batch", "classes"],
        "evidence_logits": ["batch", "classes"],
        "cams": ["batch", "classes", 6, 8],
    }


def test_the_file_names_no_place_on_the_machine_that_wrote_it(files):
    for model in files:
        data = model.SerializeToString()
        assert b".py" not in data
        assert not re.search(rb"/(home|tmp|usr|root)/", data)


def test_an_opset_that_is_not_supported(dual, preprocessing, tmp_path):
    with pytest.raises(UsageError, match="opset must be one of 18, 19, 20, got 17"):
        export_artifact(
            dual, tmp_path / "m.onnx", ExportOptions(preprocessing=preprocessing, opset=17)
        )


def test_exporting_prints_nothing(tmp_path):
    # In a process of its own: pytest's warning filters and capture would hide noise.
    code = """
        import sys
        from torch import nn
        from sigcam.export import ExportOptions, export_artifact
        from sigcam.classifier.dual_branch import DualBranch
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                            nn.Flatten(), nn.Linear(4, 3))
        export_artifact(DualBranch(net, input_size=16), sys.argv[1])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "m.onnx")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
