"""The demo's parts: timing, shifts, and the page from real explanations of a toy model."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
import torch
from torch import nn

from sigcam.classifier.branch_file import read_branch_info
from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.spec import Preprocessing
from sigcam.demo.images import shipped_images
from sigcam.demo.network import BRANCH_FILE
from sigcam.demo.page import TITLES, Panel, ShiftRow, write_page
from sigcam.demo.run import CHOICES
from sigcam.demo.shift import SHIFTS, shift_softmax
from sigcam.demo.timing import Timing, alternate
from sigcam.export import ExportOptions, export_artifact
from sigcam.runtime.session import load


@pytest.fixture(scope="module")
def dual():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return DualBranch(nn.Sequential(*layers, nn.Linear(16, 5)), input_size=32)


def test_alternate_times_every_call_once_a_round():
    counts = {"quick": 0, "slow": 0}

    def slow():
        counts["slow"] += 1
        time.sleep(0.002)

    def quick():
        counts["quick"] += 1

    timing = alternate({"quick": quick, "slow": slow}, rounds=7, warmup=2)
    assert counts == {"quick": 9, "slow": 9}
    assert [len(values) for values in timing.seconds.values()] == [7, 7]
    assert timing.median_ms("slow") >= 2
    assert timing.ratio("slow", "quick") > 1


def test_a_ratio_is_taken_within_each_round():
    timing = Timing({"a": (2.0, 20.0, 4.0), "b": (1.0, 10.0, 2.0)})
    assert timing.ratio("a", "b") == 2
    assert timing.median_ms("a") == 4000


@pytest.mark.parametrize("shift", SHIFTS, ids=lambda shift: shift.name)
def test_a_shift_changes_the_softmax_weights_and_no_probability(dual, shift):
    images = torch.randn(4, 3, 32, 32)
    moved = shift_softmax(dual, shift)
    with torch.no_grad():
        before, after = dual(images), moved(images)
    torch.testing.assert_close(before.logits.softmax(1), after.logits.softmax(1))
    torch.testing.assert_close(before.sigmoid_logits, after.sigmoid_logits, rtol=0, atol=0)
    change = moved.softmax_head.linear_weights()[0] - dual.softmax_head.linear_weights()[0]
    assert change.abs().max() > 0.1 * dual.softmax_head.linear_weights()[0].std()
    torch.testing.assert_close(change, change[:1].expand_as(change))


@pytest.mark.slow
def test_the_page_holds_its_images_and_escapes_names(dual, tmp_path):
    path = tmp_path / "toy.onnx"
    preprocessing = Preprocessing(32, 32, "stretch")
    export_artifact(
        dual,
        path,
        ExportOptions(preprocessing=preprocessing, class_names=["<b>", "b", "c", "d", "e"]),
    )
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    with load(path) as session:
        found = session.explain(image)[0]
    timing = Timing(dict.fromkeys(("classification", "control", "with_map", "explain"), (0.1, 0.2)))
    maps = dict.fromkeys(TITLES, found)
    columns = {name: [found] for name in TITLES}
    rows = [ShiftRow("as trained", columns), ShiftRow("moved", columns)]
    page = write_page(tmp_path / "index.html", [Panel("<p>.png", maps)], rows, timing, "x")
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 4 + 3 * 2
    assert "&lt;p&gt;.png" in text
    assert not re.search(r"<(p|b)>\.png", text)
    assert not re.search(r'(src|href)="(?!data:)', text)  # nothing is loaded from elsewhere
    assert "$" not in text


@pytest.mark.slow
@pytest.mark.parametrize("shift", SHIFTS, ids=lambda shift: shift.name)
def test_no_shift_moves_the_centred_map(dual, shift, tmp_path):
    """The demo's own shifts and options; the classic map moves."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    found = {}
    for name, model in (("plain", dual), ("shifted", shift_softmax(dual, shift))):
        for branch in ("softmax", "centred"):
            path = tmp_path / f"{name}-{branch}.onnx"
            export_artifact(model, path, CHOICES[branch])
            with load(path, backend="ort") as session:
                found[name, branch] = session.explain(image)[0]
    centred = found["plain", "centred"]
    assert centred.valid
    np.testing.assert_allclose(found["shifted", "centred"].heatmap, centred.heatmap, atol=2e-3)
    moved = np.abs(found["shifted", "softmax"].heatmap - found["plain", "softmax"].heatmap)
    assert moved.max() > 0.1


def test_the_shipped_branch_says_what_it_was_trained_on():
    info = read_branch_info(BRANCH_FILE)
    assert info.architecture == "efficientnet_lite0"
    assert len(info.class_names) == info.num_classes == 1000
    assert "Caltech-101 (CC BY 4.0) without their labels" in info.trained_on
    assert info.settings["labels"] == "predicted"
    assert BRANCH_FILE.stat().st_size < 3_000_000


def test_scikit_image_ships_the_photographs():
    assert len(shipped_images()) == 5
