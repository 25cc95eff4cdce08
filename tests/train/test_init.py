"""The fresh parameters of the sigmoid branch: `init`."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from sigcam.classifier.branch_file import save_branch
from sigcam.classifier.build import build_classifier
from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import UsageError
from sigcam.train.branch import train_branch
from sigcam.train.loop import fit_sigmoid_head, fit_softmax_head
from sigcam.train.settings import Reading, TrainSettings
from tests.support import toy as support

# So small a learning rate changes no parameter: what is left is what was drawn.
STILL = TrainSettings(
    learning_rate=1e-12, weight_decay=0.0, epochs=1, batch_size=40, device="cpu", init="paper"
)
BIAS = 0.02


@pytest.fixture(scope="module")
def deep() -> DualBranch:
    """A branch of a convolution, a batch norm and a linear layer, all of them large."""
    torch.manual_seed(0)
    return DualBranch(
        nn.Sequential(
            nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 300),
        ),
        "1",
        input_size=12,
    )  # fmt: skip


def drawn(dual: DualBranch, seed: int = 0, init: str = "paper") -> dict[str, torch.Tensor]:
    dual.sigmoid_head.draw(seed, init)
    return {k: v.clone() for k, v in dual.sigmoid_head.named_tensors().items()}


def assert_uniform(values: torch.Tensor, bound: float) -> None:
    assert values.abs().max() <= bound
    assert values.abs().max() > 0.99 * bound
    assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert abs(float(values.mean())) < 0.05 * bound


def test_what_the_paper_names(deep) -> None:
    tensors = drawn(deep)
    assert_uniform(tensors["2.weight"], 1 / math.sqrt(32 * 9))  # Kaiming with a = sqrt(5)
    assert_uniform(tensors["7.weight"], math.sqrt(6 / (64 + 300)))  # Xavier
    for name in ("2.bias", "7.bias"):
        assert tensors[name].abs().max() <= 2 * BIAS
    # A normal distribution cut off at two deviations has a deviation of 0.8796.
    assert float(tensors["7.bias"].std()) == pytest.approx(0.8796 * BIAS, rel=0.15)
    assert torch.equal(tensors["3.weight"], torch.ones(64))
    assert torch.equal(tensors["3.bias"], torch.zeros(64))


def test_it_follows_from_the_seed_and_leaves_the_random_state_alone(deep) -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    first, same, other = drawn(deep, 1), drawn(deep, 1), drawn(deep, 2)
    assert torch.equal(torch.rand(3), want)
    for name in first:
        assert torch.equal(first[name], same[name]), name
    assert not torch.equal(first["7.weight"], other["7.weight"])
    assert not torch.equal(first["2.bias"], other["2.bias"])


def test_the_default_is_what_the_model_was_built_with(deep) -> None:
    fresh = deep.softmax_head.fresh_copy(3).named_tensors()
    for name, value in drawn(deep, 3, "default").items():
        assert torch.equal(value, fresh[name]), name


def test_nothing_but_the_branch_is_drawn(deep) -> None:
    before = {k: v.clone() for k, v in deep.classifier_tensors().items()}
    parameters = list(deep.sigmoid_head.parameters())
    drawn(deep, 8)
    for name, value in deep.classifier_tensors().items():
        assert torch.equal(value, before[name]), name
    assert all(a is b for a, b in zip(parameters, deep.sigmoid_head.parameters(), strict=True))
    assert all(p.requires_grad for p in parameters)


@pytest.fixture
def train(views, tmp_path):
    def run(dual, settings, **options):
        reading = Reading(cache_dir=tmp_path / "cache", workers=2)
        return fit_sigmoid_head(dual, views, settings, reading=reading, progress=False, **options)

    return run


def weight(dual: DualBranch) -> torch.Tensor:
    return dual.sigmoid_head.named_tensors()["fc.weight"].clone()


def test_a_run_draws_from_its_own_seed(train, make_dual) -> None:
    duals = [make_dual() for _ in range(4)]
    for dual, seed in zip(duals[:3], (0, 7, 7), strict=True):
        train(dual, replace(STILL, seed=seed))
    drawn(duals[3], 7)
    torch.testing.assert_close(weight(duals[1]), weight(duals[3]), rtol=0, atol=1e-9)
    assert torch.equal(weight(duals[1]), weight(duals[2]))
    assert not torch.allclose(weight(duals[0]), weight(duals[1]))
    assert weight(duals[0]).abs().max() > 12**-0.5  # beyond the bound of the default


def test_the_default_starts_from_what_is_there(train, make_dual) -> None:
    dual = make_dual()
    with torch.no_grad():
        dual.sigmoid_head.named_tensors()["fc.weight"].fill_(0.5)
    train(dual, replace(STILL, init="default"))
    torch.testing.assert_close(weight(dual), torch.full((4, 12), 0.5), rtol=0, atol=1e-9)


def test_a_resumed_run_goes_on_from_its_checkpoint(train, make_dual, tmp_path) -> None:
    settings = replace(STILL, learning_rate=0.05, epochs=4, batch_size=16)
    straight, first, second = (make_dual() for _ in range(3))
    train(straight, settings)
    train(first, replace(settings, epochs=2), run_dir=tmp_path / "run")
    train(second, settings, run_dir=tmp_path / "run", resume=True)
    assert torch.equal(weight(straight), weight(second))


def test_it_is_not_for_the_softmax_head(toy, views) -> None:
    with pytest.raises(UsageError, match="init belongs to the sigmoid branch"):
        fit_softmax_head(toy, views, STILL)


def test_new_classes_and_a_branch_that_was_trained_before(data, tmp_path) -> None:
    arch = f"{support.__file__}:toy_model"
    options = {"reading": Reading(tmp_path / "cache"), "progress": False}
    made = train_branch(build_classifier(arch, size=56, new_classes=4), data, STILL, **options)
    made.save(tmp_path / "branch.safetensors")
    assert made.info.settings["init"] == "paper"
    again = build_classifier(branch_file=tmp_path / "branch.safetensors", weights="random")
    with pytest.raises(UsageError, match=r"was trained before: data: .*Take the init 'default'"):
        train_branch(again, data, STILL, **options)
    came = replace(build_classifier(arch, size=56), checkpoint="theirs.pth")
    with pytest.raises(
        UsageError, match=r"checkpoint file theirs\.pth\)\. Take the init 'default'"
    ):
        train_branch(came, data, STILL, **options)
    went_on = train_branch(came, data, replace(STILL, init="default"), **options)
    assert save_branch(tmp_path / "b.safetensors", came.dual, went_on.info).settings["init"] == (
        "default"
    )


SOFTMAX = replace(STILL, init="softmax")


def centred(dual: DualBranch) -> torch.Tensor:
    matrix = dual.softmax_head.named_tensors()["fc.weight"].double()
    return (matrix - matrix.mean(0)).float()


def test_softmax_starts_from_the_centred_softmax_branch(train, make_dual) -> None:
    dual = make_dual()
    train(dual, SOFTMAX)
    torch.testing.assert_close(weight(dual), centred(dual), rtol=0, atol=1e-6)
    head = dual.softmax_head.named_tensors()["fc.bias"]
    own = dual.sigmoid_head.named_tensors()["fc.bias"]
    torch.testing.assert_close(own, head - head.mean(), rtol=0, atol=1e-6)


def test_no_shift_of_the_softmax_branch_changes_that_start(make_dual) -> None:
    plain, shifted = make_dual(), make_dual()
    with torch.no_grad():
        shifted.softmax_head.named_tensors()["fc.weight"].add_(torch.linspace(-3, 3, 12))
    for dual in (plain, shifted):
        dual.sigmoid_head.start_from(dual.softmax_head)
    torch.testing.assert_close(weight(plain), weight(shifted), rtol=0, atol=2e-6)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_the_decay_pulls_to_the_start_and_not_to_zero(train, make_dual, optimizer) -> None:
    """With a decay far stronger than the loss the parameters stay where they began."""
    settings = TrainSettings(optimizer=optimizer, weight_decay=1e4, epochs=3, device="cpu")
    if optimizer == "adam":
        settings = replace(settings, learning_rate=1e-2, batch_size=40)
    stays, shrinks = make_dual(), make_dual()
    train(stays, replace(settings, init="softmax"))
    torch.testing.assert_close(weight(stays), centred(stays), rtol=0, atol=0.03)
    train(shrinks, replace(settings, init="default", epochs=20))
    assert weight(shrinks).abs().max() < 0.5 * weight(make_dual()).abs().max()


def test_a_resumed_run_is_pulled_to_the_same_start(train, make_dual, tmp_path) -> None:
    settings = replace(SOFTMAX, learning_rate=0.05, epochs=4, batch_size=16, weight_decay=0.5)
    straight, first, second = (make_dual() for _ in range(3))
    train(straight, settings)
    train(first, replace(settings, epochs=2), run_dir=tmp_path / "run")
    train(second, settings, run_dir=tmp_path / "run", resume=True)
    assert torch.equal(weight(straight), weight(second))


def test_given_labels_start_from_what_is_there_unless_it_is_said_otherwise(
    train, make_dual
) -> None:
    dual = make_dual()
    before = weight(dual).clone()
    train(dual, replace(STILL, init=None))
    torch.testing.assert_close(weight(dual), before, rtol=0, atol=1e-9)


def test_a_head_with_hidden_layers_starts_there_too(deep) -> None:
    """Hidden layers as they are, the last one centred."""
    deep.sigmoid_head.start_from(deep.softmax_head)
    own, other = (head.named_tensors() for head in (deep.sigmoid_head, deep.softmax_head))
    torch.testing.assert_close(own["2.weight"], other["2.weight"])
    torch.testing.assert_close(
        own["7.weight"], other["7.weight"] - other["7.weight"].mean(0), rtol=0, atol=1e-6
    )
