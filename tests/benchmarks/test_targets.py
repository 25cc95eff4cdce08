"""What was wanted and what was reached, and the table of both."""

import pytest


def row(ratio):
    return {"ratios": {"map": {"ratio": [ratio, ratio - 0.01, ratio + 0.01]}}}


def cells(text, name):
    from benchmarks.harness.targets import TARGETS

    [line] = [one for one in text.splitlines() if one.startswith(f"| {TARGETS[name].text} |")]
    return [cell.strip() for cell in line.split("|")[3:6]]


def test_every_target_has_a_part():
    from benchmarks.harness.targets import TARGETS
    from benchmarks.parts import PARTS

    assert {target.part for target in TARGETS.values()} <= PARTS.keys()


def test_table_says_met_missed_absent_and_doubtful():
    from benchmarks.harness.targets import TARGETS, Reached, table

    found = {
        "map": Reached([1.01, 1.0, 1.02], "cam on one"),
        "mlp": Reached([1.11, 1.05, 1.2]),
        "peer_fp32": Reached([5.9, 5.8, 6.1]),
        "peer_bf16": Reached([], "not on this processor (needs amx_bf16)"),
        "memory": Reached([399.0]),
        "classes": None,
    }
    text = table(found, {"memory": ", busy machine"}, TARGETS)
    assert cells(text, "map") == ["1.010 (1.000 to 1.020)", "met", "cam on one"]
    assert cells(text, "mlp")[1] == "**missed**"
    assert cells(text, "peer_fp32")[:2] == ["5.90 (5.80 to 6.10)", "**missed**"]
    assert cells(text, "peer_bf16") == ["not on this processor (needs amx_bf16)", "", ""]
    assert cells(text, "memory")[:2] == ["399 MB", "met, busy machine"]
    assert cells(text, "classes") == cells(text, "training") == ["not measured", "", ""]
    assert len(text.strip().splitlines()) == 2 + len(TARGETS)


def test_the_worst_method_of_the_three_forms_counts():
    from benchmarks.parts.methods import reached

    figures = {
        "networks": {
            "wsol-vgg16": {"methods": {"cam": row(1.0), "gradcam++": row(1.03)}},
            "wsol-resnet50": {"methods": {"cam": {"refused": "no"}, "finercam": row(2.0)}},
            "vgg16": {"methods": {"gradcam": row(1.08)}},
            "resnet50": {"methods": {"cam": row(3.0)}},
        },
        "int8_head": {"vgg16": {"gradcam": {"ratios": {"int8-head": {"ratio": [1.02, 1, 1.1]}}}}},
    }
    found = reached(figures)
    assert found["map"].values[0] == 1.03
    assert found["map"].note == "gradcam++ on wsol-vgg16; 1 within, 2 of 15 measured"
    assert found["mlp"].values[0] == 1.08
    assert found["mlp_int8_head"].values[0] == 1.02
    assert reached({"networks": {}}) == {}


def test_the_fastest_backend_of_a_precision_counts():
    from benchmarks.parts.peer_backends import reached

    pairs = {"ort fp32": [5.0, 4, 6], "openvino fp32": [7.0, 6, 8], "ort int8": [9.0, 8, 10]}
    missing = {"openvino bf16": "not on this processor", "openvino int8": "not installed"}
    found = reached({"resnet50": {"pairs": pairs, "missing": missing}})
    assert found["peer_fp32"].values == [7.0, 6, 8]
    assert found["peer_fp32"].note == "openvino fp32; ort fp32 5.00"
    assert found["peer_int8"].note == "ort int8"
    assert not found["peer_bf16"].values
    assert found["peer_bf16"].note == "not on this processor"
    assert reached({"vgg16": {}}) == {}


def test_the_worse_way_of_writing_counts_for_memory():
    from benchmarks.parts.memory import reached

    def counts(small, large, busy):
        rate = {"per_second": 9.0, "backend_busy": busy}
        return {"100": {"peak_mb": small, **rate}, "1000": {"peak_mb": large, **rate}}

    ways = {"results only": counts(300, 303, 0.95), "maps written": counts(320, 352, 0.85)}
    found = reached({"networks": {"resnet50": ways}})
    assert found["memory"].values == [352]
    assert found["memory_flat"].values == [pytest.approx(1.1)]
    assert found["backend_busy"].values == [0.85]
    del ways["maps written"]["1000"]
    assert reached({"networks": {"resnet50": ways}}) == {}
