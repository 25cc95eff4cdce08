"""What errors of loading a model advise works: each case triggers one and then follows it."""

from __future__ import annotations

import json

import pytest
import torch

from sigcam.classifier.build import build_classifier
from sigcam.classifier.zoo import load_model
from sigcam.core.errors import ModelError, SigcamError, UsageError

NET = """
from torch import nn


def net(num_classes=3):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    )


def grey():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


made, number = net(), 5
"""


@pytest.fixture
def arch(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:"


def stored(path, content):
    torch.save(content, path)
    return path


def test_a_network_that_is_made_already(arch):
    with pytest.raises(UsageError, match=r"is a network already; leave the number of classes out"):
        load_model(f"{arch}made", num_classes=3)
    assert load_model(f"{arch}made").model


def test_what_makes_no_network(arch):
    with pytest.raises(UsageError, match=r"must be a function or class .* of type int; name one"):
        load_model(f"{arch}number")
    assert load_model(f"{arch}net").model


def test_other_channels(arch):
    with pytest.raises(ModelError, match=r"of 1 channels, .* of 1 numbers each"):
        build_classifier(f"{arch}grey", size=8)
    grey = {"mean": (0.5,), "std": (0.5,)}
    assert build_classifier(f"{arch}grey", size=8, **grey).dual.channels == 1
    with pytest.raises(UsageError, match=r"timm/NAME, whose models .* or a callable"):
        build_classifier("resnet18", size=32, **grey)


def test_weights_of_another_number_of_classes():
    with pytest.raises(UsageError, match=r"are for 1000 classes, not 5; leave num_classes out, or"):
        load_model("resnet18", "DEFAULT", num_classes=5)


def test_weights_that_do_not_fit(arch, tmp_path):
    file = stored(tmp_path / "w.pth", load_model(f"{arch}net", num_classes=7).model.state_dict())
    with pytest.raises(ModelError, match=r"look at the architecture and the number of classes"):
        load_model(f"{arch}net", file)
    assert load_model(f"{arch}net", file, num_classes=7).model


def test_several_sets_of_weights(arch, tmp_path):
    sets = {name: load_model(f"{arch}net", seed=seed).model.state_dict()
            for seed, name in enumerate(("first", "second"))}  # fmt: skip
    file = stored(tmp_path / "w.pth", sets)
    with pytest.raises(
        ModelError, match=r"holds several sets of weights that fit; name one"
    ) as got:
        load_model(f"{arch}net", file)
    listed = str(got.value).partition("name one: ")[2].split(", ")
    assert len(listed) == 2
    for name in listed:
        load_model(f"{arch}net", name)
    with pytest.raises(ModelError, match=r"holds no weights under 'third'; it has") as got:
        load_model(f"{arch}net", f"{file}#third")
    for name in str(got.value).partition("it has ")[2].split(", "):
        load_model(f"{arch}net", f"{file}#{name}")


def test_a_whole_network_in_a_file(arch, tmp_path):
    network = load_model(f"{arch}net").model
    with pytest.raises(ModelError, match=r"save a state dict|state_dict"):
        load_model(f"{arch}net", stored(tmp_path / "a.pth", network))
    assert load_model(f"{arch}net", stored(tmp_path / "b.pth", network.state_dict())).model


def test_a_folder_of_weights(arch, tmp_path):
    with pytest.raises(ModelError, match=r"holds none of .*; name the file of weights"):
        load_model(f"{arch}net", tmp_path)
    file = stored(tmp_path / "w.pth", load_model(f"{arch}net").model.state_dict())
    assert load_model(f"{arch}net", file).model


def test_a_tag_of_timm_s_and_another():
    pytest.importorskip("timm")
    with pytest.raises(
        UsageError, match=r"has the weights a1_in1k, not a2_in1k; leave one of them"
    ):
        load_model("timm/resnet18.a1_in1k", "a2_in1k")
    with pytest.raises(ModelError, match=r"is no classifier: .* or give num_classes and a file of"):
        load_model("timm/vit_base_patch16_clip_224.laion2b")
    with pytest.raises(UsageError, match=r"did you mean|timm/resnet18d") as got:
        load_model("resnet18d")
    assert "timm/resnet18d" in str(got.value)


@pytest.mark.filterwarnings("default")
def test_a_folder_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "net"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"has no config.json; name one that `save_pretrained`"):
        load_model(f"hf/{folder}")
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic",
        num_labels=3, problem_type="regression",
    )  # fmt: skip
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessor(size=size).save_pretrained(folder)
    with pytest.raises(ModelError, match=r'config.json, "problem_type": "multi_label_class'):
        load_model(f"hf/{folder}")
    file = folder / "config.json"
    said = {**json.loads(file.read_text()), "problem_type": "multi_label_classification"}
    file.write_text(json.dumps(said))
    assert load_model(f"hf/{folder}").task == "multi-label"
    with pytest.raises(SigcamError, match=r"leave num_classes out"):
        load_model(f"hf/{folder}", num_classes=5)
    transformers.ResNetModel(config).save_pretrained(folder)
    file.write_text(json.dumps({**said, "architectures": ["ResNetForImageClassification"]}))
    with pytest.raises(ModelError, match=r"or take --weights random"):
        load_model(f"hf/{folder}")
    assert load_model(f"hf/{folder}", "random").model
