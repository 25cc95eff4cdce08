"""EfficientNet-Lite0 with its trained weights on real images; needs the folder ../shared."""

from __future__ import annotations

import pytest

from sigcam.convert.quantize import QuantizeOptions, quantize_artifact
from sigcam.demo.network import load_network
from sigcam.export import ExportOptions, export_artifact
from tests.support.paths import DATA

pytestmark = [
    pytest.mark.slow,
    pytest.mark.shared,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the images in {DATA.parent.name}/data"),
]


def test_what_8_bits_cost(tmp_path):
    network = load_network()
    source = tmp_path / "model.onnx"
    export_artifact(network.dual, source, ExportOptions(preprocessing=network.preprocessing))
    options = QuantizeOptions(calibration=48, held_out=64, threads=2, min_agreement=0.85, rounds=0)
    spec, [out] = quantize_artifact(
        source, DATA / "imagenet_samples", tmp_path / "int8.onnx", options
    )
    fidelity = spec.fidelity
    # 95 to 98% of 384 images agree, see docs/quantization.md; three deviations below.
    assert fidelity.agreement >= 0.86
    assert fidelity.mean_correlation >= 0.98
    assert fidelity.kept_float == ()
    # Weights of the backbone and the softmax head take a quarter, the sigmoid branch's all.
    assert out.stat().st_size < 0.5 * source.stat().st_size
