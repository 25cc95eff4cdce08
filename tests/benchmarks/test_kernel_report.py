"""docs/kernels.md is what its generator writes, and the roofline's arithmetic."""

from __future__ import annotations

import pytest

from benchmarks.kernels import report, roofline
from sigcam.kernels.compile import Compiled


def test_the_roofline_of_the_page():
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.replaced(page, "roofline", roofline.page()) == page, f"run {report.COMMAND}"


def test_bytes_by_hand():
    gpu = roofline.Gpu("one", 1e9, 1)
    case = roofline.planned((512, 7, 7), 5, True, (224, 224), gpu)
    moved = roofline.work(case)
    chunks = case.fields["chunks"]
    assert moved.inputs == 2 * (2 * 512 * 49 + 5 * 512)  # the features for two tiles of classes
    assert moved.between == 2 * 4 * 5 * 49 * (chunks + 1)
    assert moved.heatmaps == 4 * 5 * 224 * 224
    assert moved.total == moved.inputs + moved.between + moved.heatmaps
    assert moved.operations == 2 * 5 * 512 * 49 + 5 * 224 * 224 * 24
    pixels, cells, weights, features = 5 * 224 * 224, 5 * 49, 5 * 512, 512 * 49
    single = 2 * (2 * weights) + 2 * (features + weights) + 4 * (cells + 2 * cells + cells)
    assert roofline.single_operators(case) == single + 4 * pixels * (1 + 1 + 1 + 2 + 2)


def test_the_page_is_written_between_its_markers(monkeypatch, tmp_path, capsys):
    log = (
        "Compiling entry function 'f' for 'sm_80'\n"
        " 0 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads\n Used 30 registers\n"
    )
    monkeypatch.setattr(report, "compile_source", lambda *a, **k: Compiled(b"", log))
    monkeypatch.setattr(report, "supported", lambda: (75, 86))
    monkeypatch.setattr(report, "nvrtc_version", lambda: (13, 0))
    page = tmp_path / "kernels.md"
    parts = [
        f"<!-- {name}: written by `{report.COMMAND}` -->\nold\n<!-- end of {name} -->\n"
        for name in ("resources", "roofline")
    ]
    page.write_text("before\n" + "between\n".join(parts) + "after\n")
    monkeypatch.setattr(report, "PAGE", page)
    assert report.main(["--check"]) == 1
    assert report.main([]) == 0
    text = page.read_text()
    assert "| `f` | 30, 16 B spilled | 30, 16 B spilled |" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert report.main(["--check"]) == 0
    page.write_text("nothing to replace")
    with pytest.raises(ValueError, match="must have the lines"):
        report.main([])


def test_all_architectures_of_the_page_are_those_of_the_list():
    from sigcam.kernels.compile import ARCHITECTURES

    page = report.PAGE.read_text(encoding="utf-8")
    names = [f"{number / 10:.1f}" for number in ARCHITECTURES]
    listed = ", ".join(names[:-1]) + f" and {names[-1]}"
    assert listed in " ".join(page.split())
