"""The coverage benchmark on one small network for each kind of head, and the page it writes."""

from __future__ import annotations

import pytest

pytest.importorskip("timm")

from benchmarks.coverage import check as coverage_check
from benchmarks.coverage import hugging_face, report
from benchmarks.coverage import names as coverage_names

HEADS = {
    "timm/resnet10t@64": "pool + linear",
    "squeezenet1_1@64": "conv + act + pool",
    "alexnet@64": "max pool + pool + MLP",
    "timm/dla46_c@64": "pool + conv",
    "timm/lcnet_035@64": "pool + conv + act + linear",
    "timm/test_convnext@64": "pool + norm + linear",
    "timm/efficientvit_b0@64": "pool + linear + norm + act + linear",
    "timm/test_vit@64": "class token + linear",
    "timm/test_vit3": "attention + linear",
    "timm/test_maxvit@160": "pool + linear",
    "hf: Beit (small configuration)": "pool + norm + linear",
}


@pytest.mark.slow
@pytest.mark.parametrize(("entry", "head"), HEADS.items(), ids=list(HEADS))
def test_a_file_is_written(entry: str, head: str) -> None:
    if hugging_face.is_hugging_face(entry):
        pytest.importorskip("transformers")
    network = coverage_names.parsed(entry)
    outcome = coverage_check.check(network)
    assert (outcome.status, outcome.reason) == ("agrees", "")
    assert outcome.head == head
    assert 0 < outcome.errors["cams"] < 1e-4
    assert outcome.megabytes > 0
    assert network.size in (None, outcome.size[0])


@pytest.mark.slow
def test_a_named_target_layer() -> None:
    network = coverage_names.parsed("timm/resnet10t@64>layer3")
    outcome = coverage_check.check(network, "layercam")
    assert (outcome.name, outcome.status) == ("timm/resnet10t>layer3", "agrees")
    assert (outcome.target_layer, outcome.cam[1:]) == ("layer3", (4, 4))


def test_what_fails_is_told(monkeypatch) -> None:
    found = coverage_check.check(coverage_names.parsed("timm/no_such_network"))
    assert (found.status, found.megabytes) == ("refused", 0)
    assert "no_such_network" in found.reason

    def broken(*arguments, **options):
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(coverage_check, "load_model", broken)
    found = coverage_check.check(coverage_names.parsed("resnet18"))
    assert (found.status, found.reason) == ("failed", "ZeroDivisionError: a fault of ours")


def test_what_was_not_run_is_not_counted(tmp_path) -> None:
    made = {"size": (96, 96), "cam": (512, 3, 3), "packages": "torch 2"}
    rows = [
        coverage_check.Outcome("resnet18", status="agrees", errors={"cams": 2e-7}, **made),
        coverage_check.Outcome("resnet18", "layercam", "agrees", errors={"cams": 3e-6}, **made),
        coverage_check.Outcome("vgg11", status="agrees", errors={"cams": 1e-7}, **made),
        coverage_check.Outcome("swin_t", status="refused", reason="ModelError: no", **made),
    ]
    report.write(tmp_path / "page.md", [row.to_dict() for row in rows])
    page = (tmp_path / "page.md").read_text()
    assert "gradcam: 2 of the 3 networks that were run (66.7%) have a file" in page
    assert "layercam: 1 of the 1 networks that were run (100.0%) have a file" in page
    assert "- `swin_t` (gradcam: refused): ModelError: no" in page
    table = page.rpartition("## All networks")[2]
    assert "| resnet18 | 96x96 |" in table and "| 2.0e-07 | 3.0e-06 |" in table
    assert "| 1.0e-07 | not run |" in table
    assert "alexnet" not in table
    assert "alexnet" in page.partition("## Not run")[2].partition("## All networks")[0]
