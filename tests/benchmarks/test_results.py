"""The file of figures and the page that is made of it."""

import json

import pytest

MACHINE = {
    "processor": "slow",
    "flags": ["avx2"],
    "cores": 2,
    "memory_gb": 4.0,
    "system": "Linux x86_64",
    "python": "3.11",
    "packages": {"numpy": "2"},
}


def about(**changes):
    made = {
        "machine": MACHINE,
        "load_before": 0.1,
        "effort": {"seconds": 6.0},
        "quick": False,
        "command": "python -m benchmarks.run --part methods",
        "date": "2026-01-01",
        "seconds": 10,
    }
    return {**made, **changes}


def methods_row(ratio, **changes):
    row = {
        "rounds": 9,
        "ms": {"classification": [10.0, 9.0, 11.0], "map": [10.1, 9.1, 11.1]},
        "ratios": {
            "map": {"over": "classification", "ratio": [ratio, ratio - 0.01, ratio + 0.01]},
            "control": {"over": "classification", "ratio": [1.002, 0.99, 1.01]},
        },
        "mb": 12.3,
        "error": 1e-6,
        "left_out": 0,
    }
    return {**row, **changes}


def methods(**networks):
    return {
        "networks": {
            name.replace("_", "-"): {"classification_mb": 11.0, "methods": rows}
            for name, rows in networks.items()
        }
    }


def test_a_part_is_merged_on_the_same_machine():
    from benchmarks.harness.results import with_part

    old = with_part({}, "methods", about(), methods(vgg16={"gradcam": methods_row(1.05)}))
    new = methods(vgg16={"cam": {"refused": "no"}}, resnet50={"cam": methods_row(1.0)})
    both = with_part(old, "methods", about(load_before=3.0, seconds=5), new)
    networks = both["methods"]["figures"]["networks"]
    assert networks["vgg16"]["methods"].keys() == {"gradcam", "cam"}
    assert networks["resnet50"]["methods"]["cam"]["ratios"]["map"]["ratio"][0] == 1.0
    assert both["methods"]["about"]["load_before"] == 3.0
    assert both["methods"]["about"]["seconds"] == 15
    assert old["methods"]["figures"]["networks"].keys() == {"vgg16"}  # the old record is whole


@pytest.mark.parametrize(
    "change", [{"machine": {**MACHINE, "cores": 64}}, {"quick": True}, {"effort": {"seconds": 1}}]
)
def test_figures_of_another_machine_or_effort_are_never_mixed(change):
    from benchmarks.harness.results import with_part

    old = with_part({}, "methods", about(), methods(vgg16={"gradcam": methods_row(1.05)}))
    new = with_part(old, "methods", about(**change), methods(resnet50={"cam": methods_row(1.0)}))
    assert new["methods"]["figures"]["networks"].keys() == {"resnet50"}


def test_other_parts_stay():
    from benchmarks.harness.results import with_part

    records = with_part({}, "floor", about(), {"networks": {}})
    assert with_part(records, "methods", about(), methods()).keys() == {"floor", "methods"}


def test_file_comes_back(tmp_path):
    from benchmarks.harness import results

    path = tmp_path / "new" / "figures.json"
    assert results.read(path) == {}
    records = {"methods": {"about": about(), "figures": methods(vgg16={"cam": methods_row(1.0)})}}
    results.write(path, records)
    assert results.read(path) == records == json.loads(path.read_text())


@pytest.fixture
def page(tmp_path):
    from pathlib import Path

    from benchmarks.harness.page import write_page

    def make(records):
        path = tmp_path / "page.md"
        write_page(path, Path("figures.json"), records, tmp_path / "plots")
        return path.read_text()

    return make


def test_page_shows_figures_misses_scope_and_plots(page, tmp_path):
    rows = {
        "cam": methods_row(1.004),
        "gradcam": methods_row(1.023, left_out=2),
    }
    text = page({"methods": {"about": about(), "figures": methods(wsol_vgg16=rows)}})
    assert "| cam | 1.004 (0.994 to 1.014) |" in text
    assert "| gradcam | **1.023** (1.013 to 1.033) |" in text
    assert "1.0e-06 (2)" in text
    assert "### Backend only: map over classification alone" in text
    assert "`python -m benchmarks.run --part methods`, 2026-01-01, 10 s; load before" in text
    assert "Machine: slow (avx2), 2 cores" in text
    assert "busy with other work" not in text
    assert "![methods](plots/methods.png)" in text
    assert (tmp_path / "plots" / "methods.png").read_bytes().startswith(b"\x89PNG")
    assert "Not measured: appendix_a" in text


def test_page_says_that_the_machine_was_busy(page):
    record = {"about": about(load_before=1.5), "figures": methods(vgg16={"cam": methods_row(1)})}
    assert "busy with other work" in page({"methods": record})


def test_page_begins_with_the_targets(page):
    figures = methods(vgg16={"gradcam": methods_row(1.2)})
    told = "| 1.200 (1.190 to 1.210) | **missed**"
    assert f"{told} |" in page({"methods": {"about": about(), "figures": figures}})
    busy = page({"methods": {"about": about(load_before=1.5), "figures": figures}})
    assert f"{told}, busy machine |" in busy
    assert busy.index("## Targets") < busy.index("## methods")
    assert told not in page({"methods": {"about": about(quick=True), "figures": figures}})


def test_page_names_each_machine_where_they_differ(page):
    first = {"about": about(), "figures": methods(vgg16={"cam": methods_row(1)})}
    floor = {
        "about": about(machine={**MACHINE, "processor": "fast"}),
        "figures": {
            "networks": {
                "vgg16": {
                    "rounds": 7,
                    "ms": {k: [10.0, 9.0, 11.0] for k in ("product", "classification", "map")},
                    "flops": int(1e9),
                    "gflops_per_s": 200.0,
                    "over_floor": {"classification": [2.0, 1.9, 2.1], "map": [2.1, 2.0, 2.2]},
                }
            }
        },
    }
    text = page({"methods": first, "floor": floor})
    assert text.index("Machine: slow") > text.index("## methods")
    assert "Machine: fast" in text
    assert "| vgg16 | 1.00 | 200 | 5.0 | 10.0 | 10.0 | 2.000 (1.900 to 2.100) |" in text


FUNCTIONS = ("measure", "section", "reached", "plots")


def test_every_part_of_the_table_has_its_functions():
    from benchmarks.parts import PARTS, part

    for name in PARTS:
        module = part(name)
        assert all(callable(getattr(module, f)) for f in FUNCTIONS)
    with pytest.raises(ValueError, match="one of methods"):
        part("nothing")
