"""The check by randomised weights tells a map that was learnt from one that wasn't."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sigcam.core.errors import ExportError, UsageError
from sigcam.evaluate.sanity import check_sanity

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from sigcam.classifier.dual_branch import DualBranch  # noqa: E402
from sigcam.export import ExportOptions  # noqa: E402

pytestmark = pytest.mark.slow

SIZE = 24
PLAIN = ExportOptions(branch="softmax", nwc=False, signed=True)


def network(head=None):
    torch.manual_seed(1)
    layers = nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU()
    head = head or nn.Linear(12, 6)
    return DualBranch(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head),
                      input_size=SIZE)  # fmt: skip


def images(count=6):
    random = np.random.default_rng(4)
    return [random.integers(0, 256, (30, 40, 3), np.uint8) for _ in range(count)]


def test_a_redrawn_head_changes_the_map():
    report = check_sanity(network(), images(), PLAIN)
    assert [stage.name for stage in report.stages] == ["head", "2", "0"]
    for stage in report.stages:
        assert stage.pearson.value < 0.9
        assert stage.spearman.value < 0.9
        assert stage.pearson.low <= stage.pearson.value <= stage.pearson.high
    assert report.constant == 0


def test_a_map_that_knows_no_class_outlives_the_head():
    """All weights alike: drawing them anew changes nothing, and the check says so."""
    dual = network()
    for value in dual.softmax_head.named_tensors().values():
        value.fill_(0.5)
    head, *below = check_sanity(dual, images(), PLAIN).stages
    assert head.pearson.value == pytest.approx(1, abs=1e-9)
    assert head.spearman.value == pytest.approx(1, abs=1e-9)
    assert below[-1].pearson.value < 0.9


def test_constant_maps_count_as_nothing_and_are_told():
    dual = network()
    for value in dual.softmax_head.named_tensors().values():
        value.fill_(-1.0)  # every sum is negative, so every map is zero
    report = check_sanity(dual, images(4), ExportOptions(branch="softmax", nwc=False))
    assert report.constant == 4
    assert report.stages[0].constant == 4
    assert report.stages[0].pearson.value == report.stages[0].spearman.value == 0


def test_the_mean_is_over_the_images():
    """Against the correlations of the same CAMs, one after the other."""
    from sigcam.export.randomise import Cascade
    from sigcam.images.preprocess import prepare

    dual, given = network(), images(5)
    cascade = Cascade(dual, PLAIN, seed=3)
    pixels = np.stack([prepare(image, cascade.preprocessing)[0] for image in given])
    (_, intact), *after = cascade.run(pixels)
    report = check_sanity(dual, given, PLAIN, seed=3, batch_size=2)
    for stage, (name, cams) in zip(report.stages, after, strict=True):
        pairs = list(zip(intact, cams, strict=True))
        assert stage.name == name
        wanted = np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs])
        assert stage.pearson.value == pytest.approx(wanted, abs=1e-4)


def test_seeds():
    dual, given = network(), images()
    assert check_sanity(dual, given, seed=1) == check_sanity(dual, given, seed=1)
    assert check_sanity(dual, given, seed=1) != check_sanity(dual, given, seed=2)


def test_the_report_says_what_was_checked_and_becomes_json():
    told = []
    options = ExportOptions(branch="softmax", nwc=False)
    report = check_sanity(network(), images(2), options, seed=5, progress=lambda *n: told.append(n))
    found = json.loads(json.dumps(report.as_json()))
    assert (found["images"], found["method"], found["branch"]) == (2, "cam", "softmax")
    assert (found["nwc"], found["signed"], found["seed"]) == (False, False, 5)
    assert found["stages"][1]["layers"] == ["2"]
    assert found["stages"][0]["pearson"].keys() == {"value", "low", "high"}
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_no_images():
    with pytest.raises(UsageError, match="no images"):
        check_sanity(network(), [])


@pytest.mark.parametrize("given", [{"batch_size": 0}, {"resamples": 0}])
def test_numbers_out_of_range(given):
    with pytest.raises(UsageError, match="batch_size and resamples must be at least 1"):
        check_sanity(network(), images(1), **given)


def test_a_method_that_does_not_fit():
    head = nn.Sequential(nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 6))
    with pytest.raises(ExportError, match="use gradcam"):
        check_sanity(network(head), images(1))
