"""A fresh branch is fresh, whatever its weights are computed from."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.fresh import computed_copy
from sigcam.core.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
IMAGES = torch.zeros(1, 3, 8, 8)
D, C = 48, 6


class Net(nn.Module):
    def __init__(self, wrap=lambda layer: layer):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, D, 3)
        self.fc = wrap(nn.Linear(D, C))

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


class Kept:
    """Holds an activation, as helpers of hooks do."""

    def __init__(self, value):
        self.value = value


class Doubled(nn.Module):
    """A parametrisation without a right inverse."""

    def forward(self, weight):
        return weight * 2


class Mixed(nn.Module):
    """A parametrisation that keeps a matrix as a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mix", torch.eye(D).roll(1, 0))

    def forward(self, weight):
        return weight @ self.mix


class Bare(nn.Module):
    """Weights that no layer of torch's owns; its reset wants arguments."""

    def __init__(self, layer):
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().clone())

    def reset_parameters(self, gain):
        self.weight.data.mul_(gain)

    def forward(self, x):
        return x @ self.weight.t()


class Idle(Bare):
    """A reset that leaves the weights."""

    def reset_parameters(self):
        pass


def trained(model):
    """Gives a model weights that aren't as it was initialised, as training would."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        images = torch.randn(8, 3, 8, 8, generator=generator)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), torch.arange(8) % C).backward()
        optimiser.step()
    return model


def rows(head):
    """The effective weights [C, D] of a head that is linear after its neck."""
    with torch.no_grad():
        return (head.classifier(torch.eye(D)) - head.classifier(torch.zeros(1, D))).T


WRAPS = {
    "plain": lambda layer: layer,
    "weight_norm, old": nn.utils.weight_norm,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm, old": nn.utils.spectral_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight_norm and spectral_norm": lambda layer: parametrizations.spectral_norm(
        parametrizations.weight_norm(layer)
    ),
    "no right inverse": lambda layer: parametrize.register_parametrization(
        layer, "weight", Doubled()
    ),
    "with a buffer": lambda layer: parametrize.register_parametrization(layer, "weight", Mixed()),
    "bare": Bare,
    "an idle reset": Idle,
}


@pytest.mark.parametrize("case", WRAPS)
def test_the_effective_weights_are_fresh_and_of_the_usual_size(case):
    model = trained(Net(WRAPS[case]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dual = DualBranch(model, example=IMAGES)
    original, fresh = rows(dual.softmax_head), rows(dual.sigmoid_head)
    alike = torch.cosine_similarity(original, fresh, 1)
    assert alike.abs().max() < 0.6  # 48 random numbers; the same weights have 1
    assert alike.abs().mean() < 0.3
    assert 0.2 < fresh.norm() / original.norm() < 5
    again = rows(dual.softmax_head.fresh_copy(0))
    other = rows(dual.softmax_head.fresh_copy(1))
    torch.testing.assert_close(again, fresh)
    assert torch.cosine_similarity(other, fresh, 1).abs().max() < 0.6
    with torch.no_grad():
        images = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(dual(images).logits, model.eval()(images))
    for name, value in model.state_dict().items():  # the model itself is left as it was
        assert torch.equal(value, before[name]) or "_u" in name or "_v" in name


@pytest.mark.parametrize("case", ["weight_norm, old", "spectral_norm, old"])
def test_the_paper_s_initialisation_is_of_the_plain_weight(case):
    dual = DualBranch(trained(Net(WRAPS[case])), example=IMAGES)
    dual.sigmoid_head.draw(3, "paper")
    plain = DualBranch(trained(Net()), example=IMAGES)
    plain.sigmoid_head.draw(3, "paper")
    a, b = rows(dual.sigmoid_head), rows(plain.sigmoid_head)
    assert torch.cosine_similarity(a, b, 1).min() > 0.999
    if "weight" in case:
        torch.testing.assert_close(a, b)
    else:  # its largest singular value is 1
        assert torch.linalg.matrix_norm(a, 2).item() == pytest.approx(1, abs=1e-2)


def test_a_spectral_branch_starts_from_the_softmax_branch_with_its_vectors():
    dual = DualBranch(trained(Net(WRAPS["spectral_norm"])), example=IMAGES)
    dual.sigmoid_head.start_from(dual.softmax_head)
    torch.testing.assert_close(rows(dual.sigmoid_head), rows(dual.softmax_head))


class Buffered(Net):
    """The classifier's matrix is a buffer; only a scale and a bias are parameters."""

    def __init__(self):
        super().__init__()
        weight = self.fc.weight.detach().clone()
        self.fc = None
        self.register_buffer("prototypes", weight)
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.bias = nn.Parameter(torch.randn(C))

    def forward(self, x):
        z = self.conv(x).relu().mean((2, 3))
        return self.scale * z @ self.prototypes.t() + self.bias


def test_weights_in_a_buffer_are_refused():
    with pytest.raises(ModelError, match=r"weights lie in buffers \(prototypes\).* earlier branch"):
        DualBranch(Buffered(), example=IMAGES)


def test_following_the_advice_on_buffers_works():
    model = Buffered()
    weight = model.prototypes
    del model.prototypes
    model.prototypes = nn.Parameter(weight)
    assert DualBranch(model, example=IMAGES).num_classes == C


def test_few_channels_are_no_reason_to_refuse():
    for channels in (1, 2, 3):
        for seed in range(3):
            torch.manual_seed(seed)
            layers = nn.Conv2d(3, channels, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            model = nn.Sequential(*layers, nn.Linear(channels, 2))
            DualBranch(model, example=IMAGES, seed=seed)


def test_batch_norm_statistics_in_the_head_are_no_weights():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8),
        nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4),
    )  # fmt: skip
    dual = DualBranch(model, example=IMAGES)
    assert dual.sigmoid_head.parameter_counts() == {"4": 72, "5": 16, "7": 36}


def test_a_tensor_that_was_computed_with_gradients_is_copied():
    model = trained(Net(nn.utils.weight_norm))
    copied = computed_copy(model)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(copied(images), model(images))
    assert copied.fc.weight_v is not model.fc.weight_v


def test_what_is_fresh_is_said_by_stage():
    """A low branch layer draws stages of the backbone anew."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(6)]
    model = nn.Sequential()
    model.stem = nn.Conv2d(3, 4, 3)
    model.stage = nn.Sequential(*blocks)
    model.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.fc = nn.Linear(4, 2)
    high = DualBranch(model, "stage", IMAGES)
    assert high.branch_note == (
        "the sigmoid branch begins after stage and has 10 parameters: fc (10)"
    )
    low = DualBranch(model, "stem", IMAGES)
    assert low.branch_note == (
        "the sigmoid branch begins after stem and has 898 parameters: stage (888), fc (10)"
    )
    counts = low.sigmoid_head.parameter_counts()
    assert counts["stage.0.0"] == 148
    assert sum(counts.values()) == 898


@pytest.mark.parametrize("keep", [lambda x: [x], lambda x: {"last": (x, x)}, Kept])
def test_a_model_that_keeps_activations_is_copied(keep):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    model.kept = keep(model[0](torch.randn(1, 3, 8, 8)))
    copied = computed_copy(model)
    first, second = (m.kept[0] if isinstance(m.kept, list) else m.kept for m in (model, copied))
    assert type(first) is type(second)
    assert first is not second
    assert DualBranch(model, input_size=8).num_classes == 2
