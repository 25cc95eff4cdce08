"""Files of weights in the forms that training scripts leave behind."""

from __future__ import annotations

import argparse
import json
import warnings
from collections import OrderedDict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sigcam.classifier.zoo import load_model
from sigcam.classifier.zoo.checkpoint import read_checkpoint
from sigcam.classifier.zoo.weights import load_weights
from sigcam.core.errors import ModelError, UsageError
from tests.support.versioned import Versioned

State = dict[str, Tensor]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.backbone(x).relu().mean((2, 3)))


def state(seed: int = 5) -> State:
    torch.manual_seed(seed)
    return {
        name: torch.rand(value.shape) if value.is_floating_point() else value
        for name, value in Small().state_dict().items()
    }


def under(prefix: str, tensors: State) -> State:
    return {prefix + name: value for name, value in tensors.items()}


def loaded(content: object, folder: Path, chosen: str | None = None) -> tuple[State, str]:
    torch.save(content, folder / "w.ckpt")
    model = Small()
    notes = load_weights(model, folder / "w.ckpt", chosen).notes
    return model.state_dict(), " | ".join(notes)


def same(got: State, want: State) -> bool:
    return all(torch.equal(got[name], value) for name, value in want.items())


@pytest.mark.parametrize(
    "prefix",
    ["model.", "net.", "_orig_mod.", "module.", "module._orig_mod.", "model.module.", "model.net.",
     "_orig_mod.module.", "classifier_network."],
)  # fmt: skip
def test_one_common_prefix_is_taken_off(prefix, tmp_path) -> None:
    got, notes = loaded(under(prefix, state()), tmp_path)
    assert same(got, state())
    assert notes == f"w.ckpt: took its tensors, names without {prefix!r}"


def test_nothing_is_said_of_a_file_taken_as_it_is(tmp_path) -> None:
    got, notes = loaded(state(), tmp_path)
    assert same(got, state())
    assert not notes


@pytest.mark.parametrize(
    ("wrap", "keys"),
    [
        (lambda s: {"net": s, "acc": 91.2, "epoch": 7}, "['net']"),
        (lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": s["fc.bias"]}}}}, "['mod"),
        (
            lambda s: {"state_dict": OrderedDict(s), "best_acc1": torch.tensor(3.0)},
            "['state_dict']",
        ),
        (lambda s: {"model_state_dict": s, "loss": np.float64(0.1)}, "['model_state_dict']"),
        (lambda s: {"model": s, "args": argparse.Namespace(lr=0.1, data="x")}, "['model']"),
        (lambda s: {"weights": {"classifier": s}}, "['weights']['classifier']"),
        (lambda s: {"ema": s}, "['ema']"),
        (lambda s: {"model_ema": s}, "['model_ema']"),
        (lambda s: {"ema": {"module": s, "decay": 0.99}}, "['ema']['module']"),
        (lambda s: {"ema_state_dict": s}, "['ema_state_dict']"),
        (lambda s: {"ema_state": {"shadow": s}}, "['ema_state']['shadow']"),
        (lambda s: {"module": under("module.", s)}, "['module'], names without 'module.'"),
    ],
)
def test_dictionaries_around_the_weights(wrap, keys, tmp_path) -> None:
    got, notes = loaded(wrap(state()), tmp_path)
    assert same(got, state())
    assert notes.startswith(f"w.ckpt: took {keys}")


def test_a_checkpoint_of_lightning(tmp_path) -> None:
    """The module holds the network as `self.model`, and its loss and metrics beside it."""
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {
            **under("model.", state()), "loss.weight": torch.ones(3), "acc.total": torch.ones(()),
        },
        "callbacks": {"ModelCheckpoint{'monitor': 'x'}": {"best_model_score": torch.ones(())}},
        "hyper_parameters": {"lr": 0.1, "args": argparse.Namespace(depth=3)},
    }  # fmt: skip
    got, notes = loaded(content, tmp_path)
    assert same(got, state())
    assert notes == (
        "w.ckpt: took ['state_dict'], names without 'model.', left out loss.weight, acc.total"
    )


def test_averages_made_by_torch(tmp_path) -> None:
    model = Small()
    model.load_state_dict(state(1))
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    averaged.update_parameters(model)
    got, notes = loaded(averaged.state_dict(), tmp_path)
    assert same(got, averaged.module.state_dict())
    assert notes == "w.ckpt: took its tensors, names without 'module.', left out n_averaged"


@pytest.mark.parametrize(
    ("raw", "average"),
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("net", "swa_state_dict"),
     ("model", "ema/module")],
)  # fmt: skip
def test_weights_and_their_averages(raw, average, tmp_path) -> None:
    """The weights are taken, the other set is named; what was named can be given."""
    outer, _, inner = average.partition("/")
    other = {inner: state(2)} if inner else state(2)
    content = {outer: other, raw: state(1), "epoch": 3}
    got, notes = loaded(content, tmp_path)
    assert same(got, state(1))
    assert notes == (
        f"w.ckpt: took [{raw!r}] | w.ckpt holds other weights that fit, too: give w.ckpt#{average}"
    )
    got, notes = loaded(content, tmp_path, average)
    assert same(got, state(2))
    keys = "".join(f"[{key!r}]" for key in average.split("/"))
    assert notes == f"w.ckpt: took {keys}"
    if inner:
        assert same(loaded(content, tmp_path, outer)[0], state(2))


def test_both_in_one_dictionary(tmp_path) -> None:
    content = {**under("online_model.", state(1)), **under("ema_model.", state(2))}
    got, notes = loaded(content, tmp_path)
    assert same(got, state(1))
    assert "give w.ckpt#ema_model." in notes
    assert same(loaded(content, tmp_path, "ema_model.")[0], state(2))


def test_sets_of_equal_rank_are_never_guessed(tmp_path) -> None:
    content = {"first": state(1), "second": state(2), "other": {"x": torch.ones(1)}}
    with pytest.raises(ModelError, match=r"several sets .*w\.ckpt#first, .*w\.ckpt#second"):
        loaded(content, tmp_path)
    assert same(loaded(content, tmp_path, "second")[0], state(2))
    with pytest.raises(ModelError, match="no weights under 'third'; it has first, other, second"):
        loaded(content, tmp_path, "third")
    with pytest.raises(ModelError, match=r"missing backbone\.0\.bias"):
        loaded(content, tmp_path, "other")


def test_the_same_weights_twice_are_one_set(tmp_path) -> None:
    got, notes = loaded({"model": state(1), "best": {"net": state(1)}, "ema": state(1)}, tmp_path)
    assert same(got, state(1))
    assert notes == "w.ckpt: took ['model']"


def test_a_prefix_that_not_all_tensors_have_is_no_prefix(tmp_path) -> None:
    half = {("model." if n.startswith("fc") else "") + n: v for n, v in state().items()}
    with pytest.raises(ModelError, match=r"missing fc\.bias, fc\.weight, unexpected model\.fc"):
        loaded(half, tmp_path)


def test_the_nearest_set_is_reported(tmp_path) -> None:
    tensors = under("module.", state())
    del tensors["module.fc.bias"]
    with pytest.raises(ModelError, match=r"missing fc\.bias, unexpected -"):
        loaded({"a": {"x": torch.ones(1)}, "state_dict": tensors}, tmp_path)


@pytest.mark.parametrize("wrapper", ["module", "model"])
def test_a_model_that_wraps_another(wrapper, tmp_path) -> None:
    """The file may have the wrapper's names or the names inside."""
    for prefix in ("", f"{wrapper}.", "_orig_mod."):
        torch.save(under(prefix, state()), tmp_path / "w.bin")
        model = nn.Module()
        setattr(model, wrapper, Small())
        load_weights(model, tmp_path / "w.bin")
        assert same(model.get_submodule(wrapper).state_dict(), state())


@pytest.mark.parametrize("name", ["runs/best", "best.weights", "best.ckpt", "./best", "a\\best"])
def test_a_path_that_is_not_there(name) -> None:
    with pytest.raises(ModelError, match="there is no file of weights"):
        load_model("squeezenet1_1", name)
    with pytest.raises(ModelError, match="there is no file of weights"):
        load_model("squeezenet1_1", f"{name}#ema")


def test_a_name_that_is_neither_weights_nor_a_file() -> None:
    with pytest.raises(UsageError, match=r"known are .*or a file \(there is no file best\)"):
        load_model("squeezenet1_1", "best")


class Config:
    """What a training script might keep beside the weights."""


@pytest.mark.parametrize("content", [{"hyper_parameters": Config()}, Config(), deque([1])])
def test_objects_are_named_and_not_built(content, tmp_path) -> None:
    if isinstance(content, dict):
        content["state_dict"] = under("model.", state())
    name = "deque" if isinstance(content, deque) else "Config"
    with pytest.raises(ModelError, match=rf"objects of .*{name}.*unpickle") as caught:
        loaded(content, tmp_path)
    assert "torch.save(content['state_dict'], 'weights.pth')" in str(caught.value)


def test_a_scripted_model(tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that scripting is old
        torch.jit.script(Small()).save(str(tmp_path / "w.pt"))
        with pytest.raises(ModelError, match="TorchScript archive; give the state dict"):
            load_weights(Small(), tmp_path / "w.pt")


def test_parts_and_folders_of_transformers(tmp_path) -> None:
    tensors = state()
    names = sorted(tensors)
    parts = {"model-1-of-2.safetensors": names[:3], "model-2-of-2.safetensors": names[3:]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    listed = {name: file for file, own in parts.items() for name in own}
    index.write_text(json.dumps({"weight_map": listed}))
    for path in (index, tmp_path):
        model = Small()
        load_weights(model, path)
        assert same(model.state_dict(), tensors)
    (tmp_path / "model-2-of-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"names model-2-of-2\.safetensors, which isn't there"):
        load_weights(Small(), index)
    index.write_text("[]")
    with pytest.raises(ModelError, match="no index of weights in parts"):
        load_weights(Small(), index)
    with pytest.raises(ModelError, match=r"holds none of model\.safetensors, "):
        (tmp_path / "empty").mkdir()
        load_weights(Small(), tmp_path / "empty")


@pytest.mark.parametrize(
    "text",
    ['{"weight_map": ' + '{"a":' * 10_000 + "1" + "}" * 10_001,
     '{"weight_map": {"a": "' + "x" * 5_000 + '.safetensors"}}',
     '{"weight_map": {"a": "\\u0000.safetensors"}}', '{"weight_map": {"a": []}}',
     '{"weight_map": [1]}', "[]"],
    ids=["deep", "long name", "no name", "list", "numbers", "no mapping"],
)  # fmt: skip
def test_an_index_that_is_damaged(tmp_path, text):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(ModelError, match=r"is no index of weights|isn't there"):
        read_checkpoint(index)


class VersionedLinear(Versioned, nn.Linear):
    pass


def test_layers_that_ask_for_their_version_get_the_current_one(tmp_path):
    """As torchvision's MNASNet does; the names in the file are those of the model as it is."""
    save_file({"module.weight": torch.ones(1, 2), "module.bias": torch.zeros(1)},
              str(tmp_path / "a.safetensors"))  # fmt: skip
    model = VersionedLinear(2, 1)
    load_weights(model, tmp_path / "a.safetensors")
    assert model.weight.tolist() == [[1.0, 1.0]]
