"""Parts that need images or other packages, on tiny networks and drawn images."""

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

NETWORKS = ROOT / "tests" / "support" / "tiny_network.py"
TINY, MLP = f"{NETWORKS}:tiny", f"{NETWORKS}:mlp"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with 30 images of two sizes."""
    from benchmarks.harness.networks import jpeg, random_image

    folder = tmp_path_factory.mktemp("data")
    images = folder / "imagenet_samples" / "images"
    images.mkdir(parents=True)
    for seed in range(30):
        size = (60, 80) if seed % 2 else (90, 50)
        (images / f"{seed:02}.jpg").write_bytes(jpeg(random_image(*size, seed)))
    return folder


@pytest.fixture(scope="module")
def context(data, tmp_path_factory):
    from benchmarks.harness.context import Context
    from benchmarks.harness.measure import Effort

    folder = tmp_path_factory.mktemp("files")  # one for all tests: each file is exported once

    def make(*networks):
        effort = Effort(rounds=2)
        return Context(folder, effort, True, data, print, networks)

    return make


def test_precisions_show_times_and_no_fidelity_of_fresh_weights(context):
    from benchmarks.parts import precisions

    figures = precisions.measure(context(TINY))
    one = figures["networks"][TINY]
    assert one["files"].keys() == {"float32", "int8", "fp16"}
    assert one["pairs"]["float32, ort"] == [1.0, 1.0, 1.0]
    assert {"int8, ort", "fp16, ort"} <= one["pairs"].keys()
    assert all(file["fidelity"] is None for file in one["files"].values())
    assert precisions.reached(figures) == {}
    assert "| int8 |" in precisions.section(figures)


def test_precisions_read_the_fidelity_from_the_file(context, monkeypatch):
    """Of the trained network alone; here a fresh one stands in for it."""
    from benchmarks.parts import precisions

    small = {"calibration": 8, "held_out": 12, "min_agreement": 0.0, "min_correlation": -1.0}
    monkeypatch.setattr(precisions, "MEASURED", small)
    run = context(TINY)
    network = run.network(TINY)
    from sigcam.core.artifact import read_spec
    from sigcam.core.spec import ClassSelection

    path = network.artifact("cam", classes=ClassSelection("input"))
    files, missing = precisions._files(
        run, network, path, run.data / "imagenet_samples" / "images", True
    )
    assert missing == {}
    fidelity = read_spec(files["int8"]).fidelity
    assert (fidelity.images, fidelity.calibration, fidelity.kept_float) == (12, 8, ())
    assert read_spec(files["fp16"]).fidelity.precision == "fp16"


def test_too_few_images_are_a_reason_in_the_table(context, data):
    from benchmarks.harness.backends import UnavailableError
    from benchmarks.harness.quantize import quantized

    network = context(TINY).network(TINY)
    folder = data / "imagenet_samples" / "images"
    with pytest.raises(UnavailableError, match=r"refused: .*must have 60 different images"):
        quantized(network, network.artifact("cam"), folder, calibration=30, held_out=30)
    with pytest.raises(UnavailableError, match="needs the real images"):
        quantized(network, network.artifact("cam"), data / "nothing")


def test_memory_is_that_of_the_command_itself(context, tmp_path):
    from benchmarks.harness.peak import explain_folder
    from benchmarks.parts.memory import linked

    run = context(TINY)
    images = linked(run.data / "imagenet_samples" / "images", 35, tmp_path / "images")
    out = tmp_path / "heatmaps"
    found = explain_folder(run.network(TINY).artifact("cam"), images, out, threads=1)
    assert len(list(out.iterdir())) == 35
    assert 30 < found["peak_mb"] < 500
    assert 0 <= found["backend_busy"] <= 1
    assert found["per_second"] > 0


def test_a_command_that_fails_stops_the_run(context, tmp_path):
    from benchmarks.harness.peak import explain_folder

    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit, match=r"1 of 1 images could not be explained"):
        explain_folder(context(TINY).network(TINY).artifact("cam"), tmp_path, None, threads=1)


def test_classes_are_compared_with_one_of_the_same_kind(context):
    from benchmarks.parts import end_to_end

    figures = end_to_end.measure(context(TINY))
    row = figures["classes"][TINY]
    assert row["count"] == 12
    assert row["pairs"].keys() == {"cams", "bytes", "floats", "heatmaps"}
    assert "| bytes | 12 |" in end_to_end.section(figures)
    assert end_to_end.reached(figures) == {}


def test_an_mlp_head_is_measured_in_8_bits_too(context, monkeypatch):
    from benchmarks.parts import int8_head, methods

    monkeypatch.setattr(int8_head, "METHODS", ("gradcam",))
    figures = methods.measure(context(MLP))
    assert "refused" in figures["networks"][MLP]["methods"]["cam"]
    row = figures["int8_head"][MLP]["gradcam"]
    assert row["ratios"].keys() == {"fp32", "int8-head"}
    assert row["mb"]["int8-head"] < 0.8 * row["mb"]["fp32"]
    assert row["correlation"] > 0.9
    assert f"| {MLP} | gradcam |" in methods.section(figures)


def test_backends_over_grad_cam_are_paired(context, monkeypatch):
    pytest.importorskip("pytorch_grad_cam")
    from benchmarks.parts import peer_backends
    from benchmarks.parts.peer_packages import TARGETS, Target

    monkeypatch.setitem(TARGETS, TINY, Target("1", "0.bias"))
    run = context()
    row = peer_backends.measure(run, run.network(TINY))
    assert {"ort fp32", "ort int8"} <= row["pairs"].keys()
    assert row["pairs"].keys() | row["missing"].keys() >= {"openvino fp32", "openvino bf16"}
    assert row["difference"]["grad-cam"] < 1e-3
    assert f"| {TINY} | ort int8 |" in peer_backends.section({TINY: row})
