"""PyTorch and ONNX Runtime compute the same features, and a run says which of them did."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from sigcam.core.errors import BackendUnavailableError, ModelError, UsageError
from sigcam.export.features import FeatureSession
from sigcam.train import features_by
from sigcam.train.distributed import World
from sigcam.train.feature_cache import build_cache
from sigcam.train.loop import fit_sigmoid_head
from sigcam.train.settings import Reading, TrainSettings

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


def filled(dual, views, where, by, said, **options):
    return build_cache(
        dual, views, ALONE, cache_dir=where, dtype="float32", progress=False, features_by=by,
        say=said.append, **options,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("deep", [False, True])
def test_features_are_equal(make_dual, views, tmp_path, deep):
    dual, said = make_dual(dropout=0.3, deep=deep), []
    torches = filled(dual, views, tmp_path / "t", "torch", said)
    others = filled(dual, views, tmp_path / "o", "onnxruntime", said)
    assert said == ["features by PyTorch", "features by ONNX Runtime"]
    assert torches.key == others.key
    largest = np.abs(torches.features).max()
    np.testing.assert_allclose(others.features, torches.features, atol=1e-5 * largest)
    assert not np.array_equal(np.zeros_like(others.features), others.features)


@pytest.mark.slow
def test_the_faster_one_is_chosen_and_told(toy, views, tmp_path, monkeypatch):
    monkeypatch.setattr(features_by, "WORTHWHILE", 0.0)
    for factor, words in ((3.0, "by ONNX Runtime, 3.0 times as fast"), (0.5, "by PyTorch, which")):
        said = []
        monkeypatch.setattr(features_by, "_ratio", lambda *_, factor=factor: factor)
        filled(toy, views, tmp_path / str(factor), "auto", said)
        assert words in said[0]
        filled(toy, views, tmp_path / str(factor), "auto", said)
        assert len(said) == 1  # nothing is computed the second time, so nothing is told


def test_few_views_are_not_worth_a_graph(toy, views, tmp_path):
    said = []
    filled(toy, views, tmp_path, "auto", said)
    assert said[0].startswith("features by PyTorch: 120 views take ")


def test_what_is_missing_is_told(toy, views, tmp_path, monkeypatch):
    monkeypatch.setattr(features_by, "WORTHWHILE", 0.0)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    said = []
    filled(toy, views, tmp_path / "a", "auto", said)
    assert said[0].startswith("features by PyTorch, not by ONNX Runtime: features by ONNX Runtime ")
    assert "pip install 'sigcam[export]'" in said[0]
    with pytest.raises(BackendUnavailableError, match="need onnxruntime; pip install"):
        filled(toy, views, tmp_path / "b", "onnxruntime", said)


def test_another_device_is_refused(toy, preprocessing):
    with pytest.raises(BackendUnavailableError, match=r"on the CPU, the device is meta; take"):
        features_by._require(torch.device("meta"))


def wrong(monkeypatch):
    own = FeatureSession.__call__
    monkeypatch.setattr(FeatureSession, "__call__", lambda self, x: own(self, x) * 1.001)


@pytest.mark.slow
def test_other_features_are_never_used(toy, views, tmp_path, monkeypatch):
    wrong(monkeypatch)
    monkeypatch.setattr(features_by, "WORTHWHILE", 0.0)
    said = []
    filled(toy, views, tmp_path / "a", "auto", said)
    assert "must be PyTorch's to within 1e-05" in said[0]
    with pytest.raises(ModelError, match=r"they differ by 0\.001"):
        filled(toy, views, tmp_path / "b", "onnxruntime", said)
    assert not list(tmp_path.glob("b/*/complete.json"))


@pytest.mark.slow
def test_the_callers_model_stays_as_it_is(toy, preprocessing):
    toy.train()
    before = {name: part.training for name, part in toy.named_modules()}
    FeatureSession(toy, toy.sigmoid_head, preprocessing)
    assert {name: part.training for name, part in toy.named_modules()} == before


def test_new_views_go_through_pytorch(toy, views):
    settings = TrainSettings(cached=False)
    with pytest.raises(UsageError, match="features by ONNX Runtime were asked for; keep features"):
        fit_sigmoid_head(toy, views, settings, reading=Reading(features_by="onnxruntime"))
