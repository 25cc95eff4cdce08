"""The page about the paper's Appendix A, from figures that nobody measured."""

from __future__ import annotations

import pytest


def row(**more):
    ratios = {
        "softmax map": {"over": "classification", "ratio": [1.1, 1.0, 1.2]},
        "ours": {"over": "classification", "ratio": [1.32, 1.3, 1.4]},
    }
    times = {"classification": 100.0, "softmax map": 110.0, "ours": 132.0}
    return {"ratios": ratios, "ms": {name: [ms, ms, ms] for name, ms in times.items()}, **more}


def figures(**methods):
    parameters = {"classifier": 20_000_000, "with_branch": 21_000_000}
    return {"networks": {"wsol-vgg16": {"parameters": parameters, "methods": methods}}}


def cells(text, beginning):
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {beginning} |"))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_the_paper_compares_map_with_map_and_so_does_the_cell_beside_it():
    from benchmarks.parts import appendix_a

    text = appendix_a.section(figures(cam=row()))
    *paper, method, over_map, alone = cells(text, "VGG-16")
    assert paper == ["VGG-16", "17.67", "20.87", "84.7", "101.2", "+19.5%"]
    assert (method, over_map, alone) == ("cam", "+20.0%", "+32.0% (+30.0 to +40.0)")
    assert "the ratio of their medians" in text


def test_a_ratio_within_each_round_has_its_interval():
    from benchmarks.parts import appendix_a

    text = appendix_a.section(figures(cam=row(pairs={appendix_a.OVER_MAP: [1.21, 1.2, 1.25]})))
    assert cells(text, "VGG-16")[-2] == "+21.0% (+20.0 to +25.0)"
    assert "the ratio of their medians" not in text


def test_parameters_stand_beside_the_papers():
    from benchmarks.parts import appendix_a

    text = appendix_a.section(figures(cam={"refused": "why"}))
    assert cells(text, "wsol-vgg16") == ["wsol-vgg16", "20.00", "20.46", "21.00", "21.49"]
    assert "Table 3" not in text


def test_the_papers_overheads():
    from benchmarks.parts import appendix_a

    assert appendix_a.paper_overheads() == pytest.approx((14.15, 19.48), abs=0.01)


@pytest.mark.slow
def test_ours_is_timed_against_the_classic_map(tmp_path):
    from benchmarks.harness.context import Context
    from benchmarks.harness.measure import Effort
    from benchmarks.parts import appendix_a
    from tests.support.paths import ROOT

    tiny = f"{ROOT / 'tests' / 'support' / 'tiny_network.py'}:tiny"
    context = Context(tmp_path, Effort(rounds=2), True, tmp_path, print, (tiny,))
    found = appendix_a.measure(context)["networks"][tiny]["methods"]["gradcam"]
    assert found["pairs"].keys() == {appendix_a.OVER_MAP}
