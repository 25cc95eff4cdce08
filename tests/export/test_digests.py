"""What is exported carries digests of all of its files."""

from __future__ import annotations

import pytest
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.artifact import read_spec
from sigcam.core.verify import verified
from sigcam.export import ExportOptions, export_artifact


@pytest.mark.slow
@pytest.mark.parametrize("external", [False, True])
def test_an_export_carries_its_digests(tmp_path, external):
    layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 300)
    options = ExportOptions(method="cam", head_graph=True, external_data=external)
    path = tmp_path / "model.onnx"
    spec = export_artifact(DualBranch(nn.Sequential(*layers), input_size=16), path, options)
    assert [one.kind for one in verified(path)] == ["artifact", "head graph"]
    head = read_spec(tmp_path / "model.head.onnx")
    assert spec.digest == read_spec(path).digest
    assert spec.head_digest == head.digest
    assert list(spec.external_data) == (["model.onnx.data"] if external else [])
    assert list(head.external_data) == (["model.head.onnx.data"] if external else [])
