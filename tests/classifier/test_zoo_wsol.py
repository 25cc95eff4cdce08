"""The paper's localisation networks, and checkpoints of its code in all six forms."""

from __future__ import annotations

import importlib.util
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models
from torchvision.models.inception import InceptionB
from torchvision.models.resnet import Bottleneck

from sigcam.classifier.build import build_classifier
from sigcam.classifier.zoo import load_model, wsol
from sigcam.classifier.zoo.weights import load_weights
from sigcam.core.errors import ModelError, UsageError
from sigcam.core.spec import Preprocessing

# Table 3: parameters in millions, of the classifier and of the branch; and the branch layer. The
# paper gives the sums of these rounded numbers (27.61, 21.49, 27.54).
TABLE3 = {
    "wsol-resnet50": ("25.56", "2.05", "layer4"),
    "wsol-vgg16": ("20.46", "1.03", "relu"),
    "wsol-inceptionv3": ("26.51", "1.03", "SPG_A3_2b"),
}
# Architecture: the sigmoid branch's name in the checkpoint, and the head's.
FORMS = {
    "wsol-resnet50": ("fc2", "fc"),
    "wsol-vgg16": ("fc2", "fc"),
    "wsol-inceptionv3": ("SPG_A4_2", "SPG_A4"),
    "wsol-vgg16-mlp": ("classifier_2", "classifier"),
    "torchvision.models:resnet50": ("fc2", "fc"),
    "torchvision.models:vgg16": ("classifier_2", "classifier"),
    "inception_v3": ("fc2", "fc"),
}
CLASSES = 7


def millions(module: nn.Module) -> str:
    count = Decimal(sum(p.numel() for p in module.parameters())) / 1_000_000
    return str(count.quantize(Decimal("0.01"), ROUND_HALF_UP))


@pytest.fixture
def quick(monkeypatch) -> None:
    """Fresh parameters in a fraction of the time, of about the usual size."""

    def draw(tensor: Tensor, *args: object, **options: object) -> Tensor:
        with torch.no_grad():
            return tensor.uniform_(-0.05, 0.05)

    for name in ("normal_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_"):
        monkeypatch.setattr(nn.init, name, draw)


@lru_cache
def network(arch: str) -> nn.Module:
    return load_model(arch).model


def checkpoint(arch: str, num_classes: int = CLASSES) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model, and its tensors with those of a second head, as the paper's code names them."""
    generator = torch.Generator().manual_seed(7)

    def draw(value: Tensor) -> Tensor:
        # One column stands for all of a very wide layer: the file stays small.
        columns = 1 if value.shape[-1] > 9999 else value.shape[-1]
        drawn = torch.randn(*value.shape[:-1], columns, generator=generator) * 0.02
        return drawn.expand(value.shape)

    branch, head = FORMS[arch]
    model = load_model(arch, num_classes=num_classes).model
    tensors = dict(model.state_dict())
    second = {}
    for name in [n for n in tensors if n.startswith(f"{head}.")]:
        tensors[name] = draw(tensors[name])
        second[branch + name.removeprefix(head)] = draw(tensors[name])
    model.load_state_dict(tensors)
    if arch == "inception_v3":
        second["AuxLogits.fc.bias"] = torch.zeros(3)
    return model, {**tensors, **second}


def by_hand(tensors: dict[str, Tensor], layer: str, features: Tensor) -> Tensor:
    """A head's logits from its tensors: pooling and linear, or pooling and MLP."""
    if layer.startswith("classifier"):
        x = functional.adaptive_avg_pool2d(features, 7).flatten(1)
        for i in (0, 3):
            x = functional.linear(
                x, tensors[f"{layer}.{i}.weight"], tensors[f"{layer}.{i}.bias"]
            ).relu()
        return functional.linear(x, tensors[f"{layer}.6.weight"], tensors[f"{layer}.6.bias"])
    matrix = tensors[f"{layer}.weight"].flatten(1)
    return features.mean((2, 3)) @ matrix.T + tensors[f"{layer}.bias"]


def test_preprocessing_and_number_of_classes() -> None:
    loaded = load_model("wsol-resnet50", num_classes=3)
    assert loaded.preprocessing == Preprocessing(224, 224, "stretch")
    assert loaded.class_names == ()
    assert loaded.sigmoid_tensors is None
    assert loaded.model(torch.rand(2, 3, 64, 64)).shape == (2, 3)


def test_resnet_is_torchvisions_without_a_stride() -> None:
    """At every second place the first block of layer4 gives what the one with stride gives."""
    block = network("wsol-resnet50").layer4[0]
    strided = Bottleneck(1024, 512, 2, nn.Sequential(*block.downsample)).eval()
    downsample = [nn.Conv2d(1024, 2048, 1, 2, bias=False), nn.BatchNorm2d(2048)]
    strided.downsample = nn.Sequential(*downsample)
    strided.load_state_dict(block.state_dict())
    x = torch.rand(2, 1024, 14, 14)
    with torch.no_grad():
        assert block(x).shape == (2, 2048, 14, 14)
        torch.testing.assert_close(block(x)[:, :, ::2, ::2], strided.eval()(x))


def test_inceptions_mixed_6a_is_torchvisions_without_a_stride() -> None:
    block = network("wsol-inceptionv3").Mixed_6a
    strided = InceptionB(288).eval()
    strided.load_state_dict(block.state_dict())
    x = torch.rand(2, 288, 15, 15)
    with torch.no_grad():
        assert block(x).shape == (2, 768, 15, 15)
        torch.testing.assert_close(block(x)[:, :, 1:-1:2, 1:-1:2], strided(x))


def test_vgg_with_the_mlp_head_has_no_last_pool() -> None:
    with torch.device("meta"):
        model, usual = wsol.vgg16_mlp(5), models.vgg16(num_classes=5)
        images = torch.zeros(2, 3, 224, 224)
    shapes, wanted = ({n: v.shape for n, v in m.state_dict().items()} for m in (model, usual))
    assert shapes == wanted
    assert model.features(images).shape == (2, 512, 14, 14)
    assert usual.features(images).shape == (2, 512, 7, 7)
    assert model(images).shape == (2, 5)


def test_vgg_from_its_tensors() -> None:
    """The whole of VGG in its localisation form, written out."""
    model, tensors = checkpoint("wsol-vgg16")
    images = torch.randn(2, 3, 64, 64)
    x, index = images, 0
    for count_, pool in ((2, True), (2, True), (3, True), (3, True), (3, False)):
        for _ in range(count_):
            weight, bias = (tensors[f"features.{index}.{n}"] for n in ("weight", "bias"))
            x, index = functional.conv2d(x, weight, bias, padding=1).relu(), index + 2
        if pool:
            x, index = functional.max_pool2d(x, 2), index + 1
    x = functional.conv2d(x, tensors["conv6.weight"], tensors["conv6.bias"], padding=1).relu()
    assert x.shape == (2, 1024, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(model(images), by_hand(tensors, "fc", x))


@pytest.mark.slow
@pytest.mark.parametrize("arch", list(FORMS))
def test_checkpoints_of_the_papers_code(arch, quick, tmp_path: Path) -> None:
    """Wrapped, with the prefix of DataParallel, beside the optimiser's state."""
    classes, size = (1000, 224) if arch in TABLE3 else (CLASSES, 112)
    original, tensors = checkpoint(arch, classes)
    file = tmp_path / "last_checkpoint.pth.tar"
    content = {f"module.{name}": value for name, value in tensors.items()}
    wrapped = {"architecture": arch, "epoch": 3, "state_dict": content, "optimizer": {"state": {}}}
    torch.save(wrapped, file)
    built = build_classifier(arch, weights=str(file), num_classes=classes, size=size)
    assert built.has_sigmoid
    assert built.trained_on == "with the classifier (checkpoint file last_checkpoint.pth.tar)"
    branch, head = FORMS[arch]
    with torch.no_grad():
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        out = built.dual(images)
        torch.testing.assert_close(out.logits, original(images), rtol=1e-3, atol=1e-4)
        for got, layer in ((out.logits, head), (out.sigmoid_logits, branch)):
            want = by_hand(tensors, layer, out.features)
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(out.logits, out.sigmoid_logits, atol=1e-3)
    if arch in TABLE3:
        assert out.features.shape[2:] == (14, 14)
        counts = millions(original), millions(built.dual.sigmoid_head)
        assert (*counts, built.dual.branch_layer) == TABLE3[arch]


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_plain_and_wrapped(prefix, wrapped, tmp_path: Path) -> None:
    tensors = small_state()
    content = {prefix + name: value for name, value in tensors.items()}
    torch.save({"state_dict": content} if wrapped else content, tmp_path / "w.pth")
    model = small()
    branch = load_weights(model, tmp_path / "w.pth").sigmoid_tensors
    assert branch is not None
    assert branch.keys() == {"fc.weight", "fc.bias"}
    assert torch.equal(branch["fc.weight"], tensors["fc2.weight"])
    assert torch.equal(model.fc.weight, tensors["fc.weight"])


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        self.last = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.conv(x).relu()).relu().mean((2, 3)))


def small() -> Small:
    torch.manual_seed(1)
    return Small()


def small_state() -> dict[str, Tensor]:
    return {**small().state_dict(), "fc2.weight": torch.randn(4, 6), "fc2.bias": torch.randn(4)}


def test_a_layer_of_the_models_own_stays_there(tmp_path: Path) -> None:
    tensors = small_state()
    torch.save(tensors, tmp_path / "w.pth")
    model = small()
    model.fc2 = nn.Linear(6, 4)
    assert load_weights(model, tmp_path / "w.pth").sigmoid_tensors is None
    assert torch.equal(model.fc2.weight, tensors["fc2.weight"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fc2.weight": torch.zeros(5, 6)}, r"fc2\.weight is \[5, 6\], the model's is \[4, 6\]"),
        ({"fc2.bias": None}, r"missing fc2\.bias, unexpected -"),
        ({"fc2.scale": torch.zeros(4)}, r"missing -, unexpected fc2\.scale"),
        ({"fc2.bias": torch.full((4,), torch.inf)}, r"fc2\.bias in .* not finite"),
        ({"conv.weight": None, "conv1.weight": torch.zeros(1)}, r"missing conv\.w.*cted conv1\.w"),
        ({"classifier_2.weight": torch.zeros(1)}, r"unexpected classifier_2\.weight"),
    ],
)
def test_checkpoints_that_do_not_fit(change, words, tmp_path: Path) -> None:
    tensors = {k: v for k, v in {**small_state(), **change}.items() if v is not None}
    torch.save({"state_dict": tensors}, tmp_path / "w.pth")
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ModelError, match=words):
        load_weights(model, tmp_path / "w.pth")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    torch.save(checkpoint("wsol-resnet50")[1], tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"missing Conv2d_1a.* more, unexpected bn1.* more; look"):
        load_model("wsol-inceptionv3", tmp_path / "w.pth", CLASSES)
    with pytest.raises(ModelError, match=r"fc\.weight is \[7, 2048\], the model's is \[5, 2048\]"):
        load_model("wsol-resnet50", tmp_path / "w.pth", 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "own"), [("resnet50", "wsol-resnet50"), ("vgg16", "wsol-vgg16-mlp")]
)
def test_the_localisation_form_under_torchvisions_name(arch, own, quick, tmp_path: Path) -> None:
    """The tensors fit, the strides don't: the logits would be wrong, so the name is asked for."""
    file = tmp_path / "theirs.pth"
    original, tensors = checkpoint(own)
    torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}}, file)
    with pytest.raises(ModelError, match=rf"use --arch {own}\. .*torchvision\.models:{arch}"):
        load_model(arch, file, CLASSES)
    x = torch.randn(1, 3, 64, 64)
    if arch == "resnet50" and importlib.util.find_spec("timm"):
        with pytest.raises(ModelError, match=rf"use --arch {own}"):
            load_model("timm/resnet50.a1_in1k", file, CLASSES)
    with torch.no_grad():  # both pieces of advice can be followed
        torch.testing.assert_close(load_model(own, file, CLASSES).model(x), original(x))
        other = load_model(f"torchvision.models:{arch}", file, CLASSES).model(x)
    assert not torch.allclose(other, original(x), rtol=1e-3)


@pytest.mark.slow
def test_which_branch_a_built_classifier_has(tmp_path: Path) -> None:
    arch, file = f"{__file__}:small", str(tmp_path / "w.pth")
    torch.save(small_state(), file)
    built = build_classifier(arch, weights=file, size=16)
    assert (built.has_sigmoid, built.checkpoint) == (True, "w.pth")
    lower = build_classifier(arch, weights=file, branch_layer="conv", size=16)
    other = build_classifier(arch, weights=file, new_classes=3, size=16)
    torch.save(small().state_dict(), file)
    without = build_classifier(arch, weights=file, size=16)
    for fresh in (lower, other, without):
        assert (fresh.has_sigmoid, fresh.trained_on) == (False, None)


@pytest.mark.parametrize("arch", [a for a in wsol.NETWORKS if a != "wsol-resnet50"])
def test_no_trained_weights_but_from_a_file(arch) -> None:
    with pytest.raises(UsageError, match=r"no published weights .* give a file"):
        load_model(arch, "DEFAULT")


def test_torchvisions_weights_for_the_resnet(monkeypatch) -> None:
    def offline(arch, weights=None, **options):
        assert (arch, weights) == ("resnet50", models.ResNet50_Weights.IMAGENET1K_V1)
        torch.manual_seed(9)
        return models.resnet50()

    monkeypatch.setattr(models, "get_model", offline)
    loaded = load_model("wsol-resnet50", "IMAGENET1K_V1")
    want = offline("resnet50", models.ResNet50_Weights.IMAGENET1K_V1).state_dict()
    assert all(torch.equal(v, want[k]) for k, v in loaded.model.state_dict().items())
    assert loaded.model.layer4[0].conv2.stride == (1, 1)
    assert loaded.class_names[1] == "goldfish"
    assert loaded.preprocessing.rule == "stretch"
    with pytest.raises(UsageError, match="unknown weights"):
        load_model("wsol-resnet50", "IMAGENET1K_V9")
    with pytest.raises(UsageError, match="are for 1000 classes, not 5"):
        load_model("wsol-resnet50", "DEFAULT", num_classes=5)
