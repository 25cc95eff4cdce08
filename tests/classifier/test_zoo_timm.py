"""timm's classifiers by name; nothing is downloaded."""

from __future__ import annotations

import sys

import pytest
import torch

from sigcam.classifier.zoo import load_model, takes_num_classes
from sigcam.classifier.zoo import timm as timm_models
from sigcam.core.errors import ModelError, UsageError
from sigcam.core.spec import Preprocessing

timm = pytest.importorskip("timm")

SMALL = "timm/mobilenetv3_small_050"
CONFIG = {
    "input_size": (3, 224, 224),
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.2, 0.2, 0.2),
}


@pytest.fixture
def no_download(monkeypatch):
    """What `timm.create_model` was asked for; trained weights are left out."""
    asked = []
    create = timm.create_model

    def offline(name, pretrained=False, **options):
        asked.append((name, pretrained, options))
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    return asked


def test_fresh_parameters() -> None:
    before = torch.get_rng_state()
    loaded = load_model(SMALL, num_classes=5)
    again = load_model(SMALL, "random", num_classes=5)
    other = load_model(SMALL, num_classes=5, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert (loaded.architecture, loaded.class_names) == (SMALL, ())
    assert not loaded.model.training
    assert loaded.preprocessing == Preprocessing(224, 224, "crop", 256)
    assert takes_num_classes(SMALL)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert loaded.model(x).shape == (2, 5)
        assert torch.equal(loaded.model(x), again.model(x))
        assert not torch.equal(loaded.model(x), other.model(x))


def test_another_size() -> None:
    loaded = load_model("timm/resnet10t")
    assert loaded.preprocessing == Preprocessing(176, 176, "crop", 201)
    assert loaded.model(torch.rand(1, 3, 176, 176)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("change", "want"),
    [
        ({}, (224, 224, "crop", 256)),
        ({"crop_pct": 0.95}, (224, 224, "crop", 235)),
        ({"crop_pct": 1.0}, (224, 224, "crop", 224)),
        ({"crop_pct": 1.15}, (224, 224, "crop", 224)),
        ({"input_size": (3, 256, 128)}, (256, 128, "crop", 292)),
        ({"input_size": (3, 1024, 768), "crop_mode": "squash"}, (1024, 768, "stretch", None)),
        ({"crop_mode": "border", "crop_pct": 1.0}, (224, 224, "letterbox", None)),
    ],
)
def test_preprocessing(change, want) -> None:
    got = timm_models._preprocessing({**CONFIG, **change})
    assert got == Preprocessing(*want, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def test_only_rgb() -> None:
    with pytest.raises(ModelError, match="it takes 1 channels"):
        timm_models._preprocessing({**CONFIG, "input_size": (1, 224, 224), "mean": (0.5,)})


@pytest.mark.parametrize(
    ("arch", "weights", "name", "names"),
    [
        (SMALL, "DEFAULT", "mobilenetv3_small_050", 1000),
        (SMALL, "lamb_in1k", "mobilenetv3_small_050.lamb_in1k", 1000),
        (f"{SMALL}.lamb_in1k", "DEFAULT", "mobilenetv3_small_050.lamb_in1k", 1000),
        (f"{SMALL}.lamb_in1k", None, "mobilenetv3_small_050.lamb_in1k", 0),
        ("timm/mobilenetv3_large_100", "miil_in21k", "mobilenetv3_large_100.miil_in21k", 0),
    ],
)
def test_trained_weights_and_class_names(no_download, arch, weights, name, names) -> None:
    loaded = load_model(arch, weights)
    assert no_download == [(name, weights is not None, {})]
    assert len(loaded.class_names) == names
    assert loaded.class_names[1:2] == (("goldfish",) if names else ())
    assert loaded.architecture == arch


@pytest.mark.parametrize(
    ("arch", "weights", "count", "error", "words"),
    [
        ("timm/mobilenetv3_smal_050", None, None, UsageError, "known are timm/mobilenetv3_small_0"),
        ("mobilenetv3_small_050", None, None, UsageError, "known are timm/mobilenetv3_small_050,"),
        (SMALL, "lamb_in2k", None, UsageError, "unknown weights of .*known are lamb_in1k"),
        (f"{SMALL}.nothing", None, None, UsageError, "unknown weights of .*'nothing'"),
        ("timm/resnet50.a1_in1k", "a2_in1k", None, UsageError, "a1_in1k, not a2_in1k; leave one"),
        (SMALL, "DEFAULT", 5, UsageError, "lamb_in1k of .* are for 1000 classes, not 5"),
        ("timm/vit_small_patch14_dinov2", None, None, ModelError, "no classifier: .* features"),
        ("timm/resnet50_clip", None, None, ModelError, "an embedding of 1024 numbers"),
        ("timm/resnet50_clip", "DEFAULT", 1024, ModelError, "an embedding of 1024 numbers"),
    ],
)
def test_refusals(no_download, arch, weights, count, error, words) -> None:
    with pytest.raises(error, match=words):
        load_model(arch, weights, count)
    assert no_download == []


def test_a_model_without_trained_weights(monkeypatch) -> None:
    monkeypatch.setattr(timm, "list_pretrained", lambda pattern: [])
    with pytest.raises(UsageError, match="no trained weights of mobilenetv3_small_050; give a fil"):
        load_model(SMALL, "DEFAULT")


def test_features_become_a_classifier_with_a_file(tmp_path) -> None:
    arch = "timm/test_vit.r160_in1k"
    torch.save(load_model(arch, num_classes=6, seed=4).model.state_dict(), tmp_path / "w.pth")
    loaded = load_model(arch, tmp_path / "w.pth", 6)
    want = load_model(arch, num_classes=6, seed=4).model.state_dict()
    assert all(torch.equal(v, want[k]) for k, v in loaded.model.state_dict().items())
    assert loaded.class_names == ()


def test_no_network_is_a_model_error(monkeypatch) -> None:
    def fail(*args, **kwargs):
        raise LookupError("no route to host")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(
        ModelError, match=r"weights of .*LookupError: no route to host; download th"
    ):
        load_model(SMALL, "DEFAULT")
    with pytest.raises(ModelError, match="can't build mobilenetv3_small_050: LookupError"):
        load_model(SMALL)


def test_timm_is_an_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r'pip install "sigcam\[timm\]"'):
        load_model(SMALL)
