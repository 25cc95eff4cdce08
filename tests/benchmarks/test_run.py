"""`benchmarks/run.py --quick` of cheap parts on a tiny network, from export to page."""

import json

import pytest
from click.testing import CliRunner

from tests.support.paths import ROOT

TINY = f"{ROOT / 'tests' / 'support' / 'tiny_network.py'}:tiny"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder after two runs of a part each, with two rounds."""
    from benchmarks import run

    folder = tmp_path_factory.mktemp("bench")
    options = ["--quick", "--rounds", "2", "--network", TINY, "--folder", str(folder / "files")]
    options += ["--out", str(folder / "figures.json"), "--page", str(folder / "page.md")]
    for part in ("methods", "floor"):
        done = CliRunner().invoke(run.main, ["--part", part, *options], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    return folder


@pytest.mark.slow
def test_figures_of_both_parts_are_there(ran):
    records = json.loads((ran / "figures.json").read_text())
    assert records.keys() == {"methods", "floor"}
    rows = records["methods"]["figures"]["networks"][TINY]["methods"]
    assert rows.keys() == {"cam", "gradcam"}
    for row in rows.values():
        assert row["rounds"] == 2
        assert row["ratios"]["map"]["over"] == "classification"
        assert row["error"] <= 1e-4
    floor = records["floor"]["figures"]["networks"][TINY]
    # A convolution of 8x8x3 to 8 channels at 7x7 places, and a linear layer of 8 by 12.
    assert floor["flops"] == 2 * (8 * 8 * 3 * 8 * 49 + 8 * 12)
    about = records["floor"]["about"]
    assert about["quick"]
    assert about["machine"]["packages"]["onnxruntime"]


@pytest.mark.slow
def test_page_and_plots_are_written(ran):
    text = (ran / "page.md").read_text()
    assert "## methods" in text
    assert "A quick run" in text
    for name in ("methods", "floor"):
        assert f"(benchmarks/{name}.png)" in text
        assert (ran / "benchmarks" / f"{name}.png").stat().st_size > 1000


def test_no_network_without_a_part():
    from benchmarks import run

    done = CliRunner().invoke(run.main, ["--network", TINY])
    assert done.exit_code == 2
    assert "--network needs --part" in done.output


def test_command_leaves_out_folders_of_this_machine(monkeypatch):
    from benchmarks import run

    words = ["run.py", "--part", "floor", "--rounds", "3", "--folder", "/x", "--out=/y", "--quick"]
    monkeypatch.setattr("sys.argv", words)
    assert run._command("floor") == "python -m benchmarks.run --part floor --rounds 3 --quick"


@pytest.mark.slow
def test_peak_memory_is_that_of_the_child_alone(ran, tmp_path):
    from benchmarks.harness.peak import own_peak, peak_memory

    files = ran / "files"
    model = next(files.rglob("classification.onnx"))
    held = bytearray(600 * 2**20)  # 600 MB here mustn't count there
    held[::4096] = b"1" * len(held[::4096])
    assert own_peak() > 600
    assert 10 < peak_memory(model) < 500


@pytest.mark.slow
def test_backends_that_are_not_there_say_why(ran, monkeypatch):
    from benchmarks.harness import backends

    model = next((ran / "files").rglob("cam.onnx"))
    with pytest.raises(backends.UnavailableError, match="no backend 'nothing'"):
        backends.open_graph(backends.BackendSetup("x", "nothing"), model)
    monkeypatch.setattr(backends, "flags", lambda: frozenset({"avx2"}))
    bf16 = backends.BackendSetup("x", "ort", any_flag=("amx_bf16", "avx512_bf16"))
    with pytest.raises(backends.UnavailableError, match="needs amx_bf16 or avx512_bf16"):
        backends.open_graph(bf16, model)
    unknown = backends.BackendSetup("x", "ort", {"sharpness": 3})
    with pytest.raises(backends.UnavailableError, match="no option sharpness"):
        backends.open_graph(unknown, model)
    backends.open_graph(backends.FP32, model).close()


def test_agreement_of_maps():
    import numpy as np

    from benchmarks.harness.agreement import agreement

    cam = np.arange(4.0).reshape(1, 1, 2, 2)
    logits = np.array([[1.0, 2.0]])

    def one(cams, scores=logits):
        return {"cams": cams, "logits": scores}

    flat = np.zeros_like(cam)
    found = agreement(
        [one(cam), one(cam), one(flat), one(flat)],
        [one(2 * cam), one(-cam, logits[:, ::-1]), one(flat), one(cam)],
    )
    assert found == {"mean": 0.25, "worst": -1.0, "same_class": 0.75, "images": 4}
