"""The dual-branch module: what is frozen, what trains, and what stays untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sigcam.classifier.dual_branch import DualBranch, tensors_sha256
from sigcam.core.errors import BranchMismatchError, ModelError, UsageError


class Net(nn.Module):
    def __init__(self, dropout=nn.Dropout):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        self.bn = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.drop = dropout(0.5)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.pool(self.drop(self.relu(self.bn(self.conv(x))))).flatten(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def dual(model):
    return DualBranch(model, input_size=16)


@pytest.fixture
def images():
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_outputs(model, dual, images):
    logits, sigmoid_logits, features = dual(images)
    torch.testing.assert_close(logits, model.eval()(images))
    assert sigmoid_logits.shape == (4, 5)
    assert features.shape == (4, *dual.branch.layout.shape) == (4, 6, 7, 7)
    assert (dual.branch_layer, dual.num_classes, dual.architecture) == ("relu", 5, "Net")
    assert dual.input_size == (16, 16)


def test_the_caller_s_model_is_never_changed(model, images):
    model.train()
    model.conv.weight.requires_grad_(False)
    model.fc.register_forward_hook(lambda *args: None)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    hooks = {name: len(m._forward_hooks) for name, m in model.named_modules()}
    random = torch.random.get_rng_state()

    dual = DualBranch(model, "relu", input_size=16)
    assert torch.equal(torch.random.get_rng_state(), random)
    dual.train()
    optimiser = torch.optim.SGD([p for p in dual.parameters() if p.requires_grad], lr=1.0)
    dual(images).sigmoid_logits.sum().backward()
    optimiser.step()
    with torch.no_grad():
        for p in dual.parameters():
            p.zero_()

    assert all(m.training for m in model.modules())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert {name: len(m._forward_hooks) for name, m in model.named_modules()} == hooks
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_only_the_sigmoid_head_trains(dual, images):
    before = dual.classifier_tensors()
    before = {name: value.clone() for name, value in before.items()}
    want = dual(images).logits
    dual.train()
    trainable = [n for n, p in dual.named_parameters() if p.requires_grad]
    assert trainable == ["sigmoid_head.classifier.fc.weight", "sigmoid_head.classifier.fc.bias"]
    optimiser = torch.optim.Adam((p for p in dual.parameters() if p.requires_grad), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        dual(images * 10 + 5).sigmoid_logits.square().sum().backward()
        optimiser.step()
    for name, value in dual.classifier_tensors().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(dual(images).logits, want)  # in training mode too: no dropout, frozen norm
    assert not any(p.grad is not None for p in dual.features.parameters())


@pytest.mark.parametrize("dropout", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout])
def test_dropout_lives_in_the_sigmoid_head_while_training(dropout, images):
    torch.manual_seed(0)
    dual = DualBranch(Net(dropout), input_size=16)
    features = dual.features(images)
    still = dual.sigmoid_head(features)
    assert torch.equal(still, dual.sigmoid_head(features))
    dual.train()
    assert not torch.equal(dual.sigmoid_head(features), dual.sigmoid_head(features))
    assert torch.equal(dual.softmax_head(features), dual.softmax_head(features))
    dual.eval()
    assert torch.equal(dual.sigmoid_head(features), still)
    # Before the pooling: what is cached for training must not have passed a dropout.
    assert dual.sigmoid_head.neck_shape == (6, 7, 7)
    assert dual.softmax_head.neck_shape == (6,)


def test_channel_dropout_stays_channel_dropout(images):
    dual = DualBranch(Net(nn.Dropout2d), input_size=16).train()
    layer = next(
        m for n, m in dual.sigmoid_head.classifier.named_children() if n.startswith("dropout")
    )
    dropped = layer(torch.ones(8, 6, 7, 7))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert all(len(channel.unique()) == 1 for image in dropped for channel in image)


@pytest.mark.slow
def test_fresh_parameters(model):
    first, same = (DualBranch(model, input_size=16, seed=1).sigmoid_head for _ in range(2))
    other = DualBranch(model, input_size=16, seed=2).sigmoid_head
    values = [head.named_tensors()["fc.weight"] for head in (first, same, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert not torch.equal(values[0], model.fc.weight)
    bound = 6**-0.5  # of nn.Linear's Kaiming initialisation
    assert bound / 2 < values[0].abs().max() <= bound


def test_fresh_copy_is_independent(dual):
    new = dual.softmax_head.fresh_copy(5)
    with torch.no_grad():
        new.classifier.get_parameter("fc.weight").zero_()
    assert dual.softmax_head.named_tensors()["fc.weight"].any()
    assert dual.sigmoid_head.named_tensors()["fc.weight"].any()
    assert all(p.requires_grad for p in new.parameters())


def test_a_layer_without_reset_parameters():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(6))
            self.shift = nn.Parameter(torch.linspace(-1, 3, 6))

        def forward(self, x):
            return x * self.gain + self.shift

    model = Net()
    model.fc = nn.Sequential(Scale(), nn.Linear(6, 5))
    tensors = DualBranch(model, input_size=16).sigmoid_head.named_tensors()
    assert torch.equal(tensors["fc.0.gain"], torch.ones(6))  # no deviation to draw with
    shift = tensors["fc.0.shift"]
    assert not torch.equal(shift, model.fc[0].shift)
    assert shift.std() > 0.3
    assert -3 < shift.mean() < 5


def test_load_tensors(dual, images):
    head = dual.sigmoid_head
    source = {name: torch.randn(value.shape) for name, value in head.named_tensors().items()}
    head.load_tensors({name: value.half() for name, value in source.items()})
    pooled = dual.features(images).mean((2, 3))
    want = pooled @ source["fc.weight"].half().float().T + source["fc.bias"].half().float()
    torch.testing.assert_close(head(dual.features(images)), want)
    assert all(p.requires_grad for p in head.parameters())


def test_load_tensors_refuses_and_changes_nothing(dual):
    head = dual.sigmoid_head
    good = {name: value.clone() for name, value in head.named_tensors().items()}
    nan = good["fc.bias"] * torch.nan
    cases = [
        ({"fc.weight": good["fc.weight"]}, BranchMismatchError, r"missing \['fc.bias'\]"),
        ({**good, "fc2.bias": nan}, BranchMismatchError, r"unknown \['fc2.bias'\]"),
        (
            {**good, "fc.bias": torch.zeros(4)},
            BranchMismatchError,
            r"fc.bias must be \[5\], got \[4\]",
        ),
        ({**good, "fc.weight": good["fc.weight"] + 1, "fc.bias": nan}, ModelError, "not finite"),
    ]
    for tensors, error, words in cases:
        with pytest.raises(error, match=words):
            head.load_tensors(tensors)
    for name, value in head.named_tensors().items():
        assert torch.equal(value, good[name])


def test_linear_weights_are_views_and_ignore_values(dual):
    head = dual.sigmoid_head
    W, b = head.linear_weights()
    assert (W.shape, b.shape) == ((5, 6), (5,))
    with torch.no_grad():
        head.classifier.get_parameter("fc.weight").fill_(torch.nan)
    assert W.isnan().all()
    assert head.linear_weights()[0].isnan().all()


def test_linear_weights_without_a_bias_and_in_training_mode():
    model = Net()
    model.fc = nn.Linear(6, 5, bias=False)
    dual = DualBranch(model, input_size=16).train()
    W, b = dual.sigmoid_head.linear_weights()
    assert W.shape == (5, 6)
    assert not b.any()
    assert dual.sigmoid_head.training


def test_a_head_that_looks_linear_but_is_not():
    # Sum pooling: the same operators in number and the same tensors.
    net = type("Sum", (Net,), {"forward": lambda s, x: s.fc(s.relu(s.conv(x)).sum((2, 3)))})()
    with pytest.raises(ModelError, match=r"it contains .*sum"):
        DualBranch(net, input_size=16).softmax_head.linear_weights()


def clamped(z):
    return z.clamp(-50, 50)


def doubled_where_large(z):
    return torch.where(z[:, :1] > 20, 2 * z, z)


def shrunk(z):
    return nn.functional.hardshrink(z, 1e-1)


@pytest.mark.parametrize("bent", [clamped, doubled_where_large, shrunk])
def test_a_head_that_is_linear_for_most_values_only(bent):
    net = type("Bent", (Net,), {"forward": lambda s, x: s.fc(bent(s.conv(x).mean((2, 3))))})()
    with pytest.raises(ModelError, match="must be global average pooling and one linear layer"):
        DualBranch(net, input_size=16).softmax_head.linear_weights()


def test_a_copy_of_the_module_is_whole(dual, images):
    twin = copy.deepcopy(dual)
    want = dual(images).sigmoid_logits.detach()
    with torch.no_grad():
        for p in dual.parameters():
            p.zero_()
    torch.testing.assert_close(twin(images).sigmoid_logits, want)
    assert twin.sigmoid_head.linear_weights()[0].any()


def test_state_dict_round_trip(model, dual, images):
    other = DualBranch(Net(), input_size=16, seed=9)
    other.load_state_dict(dual.state_dict())
    assert torch.equal(other(images).sigmoid_logits, dual(images).sigmoid_logits)


def test_fingerprints(model, dual):
    again = DualBranch(model, input_size=16)
    assert again.weights_sha256() == dual.weights_sha256()
    assert again.branch_sha256() == dual.branch_sha256()
    assert DualBranch(model, input_size=16, seed=1).branch_sha256() != dual.branch_sha256()
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] += 1e-3
    assert DualBranch(model, input_size=16).weights_sha256() != dual.weights_sha256()


def test_tensors_sha256_sees_names_types_shapes_and_bytes():
    a = torch.arange(6, dtype=torch.float32)
    base = tensors_sha256({"a": a, "b": a + 1})
    assert len(base) == 64
    assert base == tensors_sha256({"b": a + 1, "a": a.clone()})
    assert base == tensors_sha256({"a": torch.stack([a, a], 1)[:, 0], "b": a + 1})
    others = [
        {"a": a + 1, "b": a},
        {"a": a, "c": a + 1},
        {"a": a.view(2, 3), "b": a + 1},
        {"a": a.view(torch.int32), "b": a + 1},
        {"a": a},
    ]
    hashes = {tensors_sha256(other) for other in others}
    assert len(hashes) == len(others)
    assert base not in hashes
    assert tensors_sha256({"a": torch.tensor(1.0), "e": torch.zeros(0)})
    assert tensors_sha256({"h": torch.ones(2, dtype=torch.bfloat16)})


@pytest.mark.parametrize("example", [torch.zeros(3, 16, 16), torch.zeros(1, 3, 16, 16).half()])
def test_an_example_that_is_no_image(model, example):
    with pytest.raises(UsageError, match="example must be float32"):
        DualBranch(model, example=example)


class Ensemble(nn.Module):
    """The mean of two networks: nothing with parameters follows both."""

    def __init__(self):
        super().__init__()
        self.one, self.two = Net(), Net()

    def forward(self, x):
        return (self.one(x) + self.two(x)) / 2


def test_a_head_without_parameters_says_that_there_is_no_branch():
    dual = DualBranch(Ensemble(), input_size=16, target_layers=["one.relu"])
    assert not dual.is_trainable
    assert dual.branch_note == (
        "nothing with parameters follows forward:add, where the branches begin, so there is no "
        "sigmoid branch to train"
    )


class Prototypes(nn.Module):
    """Attends to its classifier's rows in the backbone."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def forward(self, x):
        f = self.conv(x).relu()
        shares = torch.einsum("bchw,kc->bkhw", f, self.fc.weight).softmax(1)
        f = f + torch.einsum("bkhw,kc->bchw", shares, self.fc.weight)
        return self.fc(f.mean((2, 3)))


class TwoNames(nn.Module):
    """Two layers that share one tensor, one in the backbone and one as the classifier."""

    def __init__(self):
        super().__init__()
        self.conv, self.mix, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 6), nn.Linear(6, 6)
        self.fc.weight = self.mix.weight

    def forward(self, x):
        return self.fc(self.mix(self.conv(x).relu().permute(0, 2, 3, 1)).relu().mean((1, 2)))


@pytest.mark.parametrize("net", [Prototypes, TwoNames])
def test_a_tensor_shared_with_the_backbone_stays_as_it_is_there(net, images):
    torch.manual_seed(0)
    model = net().eval()
    dual = DualBranch(model, input_size=16)
    shared = dual.classifier_tensors()["fc.weight"].clone()
    features, logits = dual.features(images), dual(images).logits
    torch.testing.assert_close(logits, model(images))
    fresh = dual.sigmoid_head.named_tensors()["fc.weight"]
    assert fresh.shape == shared.shape
    assert not torch.allclose(fresh, shared, atol=1e-2)
    optimiser = torch.optim.SGD([p for p in dual.parameters() if p.requires_grad], lr=1.0)
    hashes = dual.weights_sha256(), dual.branch_sha256()
    dual.train()
    dual(images).sigmoid_logits.square().sum().backward()
    optimiser.step()
    assert dual.weights_sha256() == hashes[0]
    assert dual.branch_sha256() != hashes[1]
    assert torch.equal(dual.features(images), features)
    assert torch.equal(dual(images).logits, logits)
    assert torch.equal(model.fc.weight, shared)
