from __future__ import annotations

import csv
import errno
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sigcam.core.errors import (
    BackendUnavailableError,
    DataError,
    ModelError,
    StorageError,
    TrainingError,
    UsageError,
)
from sigcam.train import loop as loop_module
from sigcam.train import samples as batches
from sigcam.train.loop import fit_sigmoid_head, fit_softmax_head
from sigcam.train.settings import Reading, TrainSettings, default_weight_decay

# The toy's features are small, so the default weight decay would hold it back.
QUICK = TrainSettings(learning_rate=0.05, weight_decay=5e-4, epochs=4, batch_size=16, device="cpu")


@pytest.fixture
def train(views, tmp_path):
    def run(dual, settings=QUICK, *, by=fit_sigmoid_head, given=views, **options):
        options = {
            "reading": Reading(cache_dir=tmp_path / "cache", workers=2),
            "progress": False,
            **options,
        }
        return by(dual, given, settings, **options)

    return run


def head(dual) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in dual.sigmoid_head.named_tensors().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    for name in a:
        assert torch.equal(a[name], b[name]), name


def interrupt_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """A real Ctrl-C (SIGINT) while the loss is computed for the given time."""
    original, seen = loop_module.evidence_loss, []

    def loss(*args, **kwargs):
        seen.append(1)
        if len(seen) == calls:
            signal.raise_signal(signal.SIGINT)
        return original(*args, **kwargs)

    monkeypatch.setattr(loop_module, "evidence_loss", loss)


def test_it_learns_and_changes_nothing_but_the_branch(train, toy, tmp_path) -> None:
    before = {k: v.clone() for k, v in toy.classifier_tensors().items()}
    seen = []
    result = train(
        toy, replace(QUICK, epochs=12, val_fraction=0.25), run_dir=tmp_path, on_epoch=seen.append
    )
    assert result.history[-1].top1 > 0.9
    assert result.history[-1].val_top1 > 0.9
    assert result.history[-1].loss < result.history[0].loss
    assert result.history[-1].val_loss < result.history[0].val_loss
    assert tuple(seen) == result.history
    assert (result.images, result.views, result.positive_weight) == (30, 3, 3.0)
    assert_same(before, toy.classifier_tensors())
    assert not any(p.requires_grad for p in toy.softmax_head.parameters())
    assert all(p.requires_grad and p.grad is None for p in toy.sigmoid_head.parameters())
    assert not toy.sigmoid_head.classifier.training
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == [str(i) for i in range(1, 13)]
    assert float(rows[-1]["loss"]) == pytest.approx(result.history[-1].loss, rel=1e-5)
    assert float(rows[0]["samples_per_s"]) > 0
    assert rows[0]["val_top1"] != ""


def test_the_loss_of_the_first_epoch_is_the_definition(train, toy, data) -> None:
    # With one batch, the epoch's loss is that of the untouched head over all samples.
    dual_before = head(toy)
    result = train(toy, replace(QUICK, epochs=1, batch_size=10**6), run_dir=None)
    features = np.load(result.cache_folder / "features.npy").astype(np.float64).reshape(120, -1)
    z = features @ dual_before["fc.weight"].numpy().T + dual_before["fc.bias"].numpy()
    y = np.eye(4)[np.repeat(data.labels, 3)]
    s = 1 / (1 + np.exp(-z))
    want = -(3 * y * np.log(s) + (1 - y) * np.log(1 - s)).mean()
    assert result.history[0].loss == pytest.approx(want, rel=1e-5)


def test_seeds_are_reproducible(train, make_dual) -> None:
    heads = []
    for seed in (0, 0, 1):
        dual = make_dual(dropout=0.3)
        train(dual, replace(QUICK, seed=seed))
        heads.append(head(dual))
    assert_same(heads[0], heads[1])
    assert not torch.equal(heads[0]["fc.weight"], heads[2]["fc.weight"])


def test_the_callers_random_state_is_left_alone(train, toy) -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    train(toy)
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize("cached", [True, False])
def test_resumed_epochs_equal_an_uninterrupted_run(train, make_dual, tmp_path, cached) -> None:
    settings = replace(QUICK, cached=cached, val_fraction=0.2)
    straight, first, second = (make_dual(dropout=0.3) for _ in range(3))
    whole = train(straight, settings)
    train(first, replace(settings, epochs=2), run_dir=tmp_path)
    result = train(second, settings, run_dir=tmp_path, resume=True)
    assert_same(head(straight), head(second))
    assert [m.loss for m in result.history] == [m.loss for m in whole.history]
    assert [m.val_loss for m in result.history] == [m.val_loss for m in whole.history]


@pytest.mark.parametrize(("at", "schedule"), [(1, "constant"), (8, "cosine"), (11, "constant")])
def test_ctrl_c_keeps_a_checkpoint_to_go_on_from(
    train, make_dual, tmp_path, monkeypatch, at, schedule
) -> None:
    settings = replace(QUICK, epochs=2, schedule=schedule)  # 8 steps per epoch
    straight, first, second = (make_dual(dropout=0.3) for _ in range(3))
    whole = train(straight, settings)
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_after(patch, at)
        with pytest.raises(KeyboardInterrupt):
            train(first, settings, run_dir=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    result = train(second, settings, run_dir=tmp_path, resume=True)
    assert_same(head(straight), head(second))
    assert [m.loss for m in result.history] == pytest.approx([m.loss for m in whole.history])
    assert [m.top1 for m in result.history] == [m.top1 for m in whole.history]


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_ctrl_c_after_the_last_step_is_not_swallowed(train, make_dual, tmp_path, optimizer) -> None:
    settings = TrainSettings(optimizer, epochs=1, device="cpu")
    first, second = make_dual(), make_dual()
    with pytest.raises(KeyboardInterrupt):
        train(
            first,
            settings,
            run_dir=tmp_path,
            on_epoch=lambda _: signal.raise_signal(signal.SIGINT),
        )
    result = train(second, settings, run_dir=tmp_path, resume=True)
    assert len(result.history) == 1
    assert_same(head(first), head(second))


def test_a_resumed_run_must_be_the_same_run(train, toy, views, tmp_path) -> None:
    train(toy, run_dir=tmp_path)
    with pytest.raises(TrainingError, match=r"learning_rate: 0\.05 before, 0\.1 now"):
        train(toy, replace(QUICK, learning_rate=0.1), run_dir=tmp_path, resume=True)
    with pytest.raises(TrainingError, match="labels"):
        samples = [replace(one, label=3 - one.label) for one in views.dataset.samples]
        other = replace(views, dataset=replace(views.dataset, samples=samples))
        train(toy, given=other, run_dir=tmp_path, resume=True)
    with pytest.raises(TrainingError, match="no checkpoint"):
        train(toy, run_dir=tmp_path / "other", resume=True)
    with pytest.raises(UsageError, match="run_dir"):
        train(toy, resume=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"broken")
    with pytest.raises(TrainingError, match="no readable checkpoint"):
        train(toy, run_dir=tmp_path, resume=True)


def test_on_the_fly_draws_new_views_every_epoch(train, toy, views) -> None:
    seen: list[tuple[int, int]] = []

    class Spy(type(views.augmentation)):
        def view(self, image, preprocessing, index, view):
            seen.append((index, view))
            return super().view(image, preprocessing, index, view)

    spied = replace(views, augmentation=Spy(views=3))
    result = train(toy, replace(QUICK, cached=False, epochs=2), given=spied)
    assert sorted(seen) == sorted((p, v) for p in range(40) for v in (1, 2))
    assert (result.views, result.cache_folder) == (0, None)


@pytest.mark.parametrize("cached", [True, False])
def test_unreadable_images_are_left_out_and_told(train, toy, data, tmp_path, cached) -> None:
    data.samples[7].path.write_bytes(b"")
    settings = replace(QUICK, cached=cached, epochs=1, batch_size=1)
    result = train(toy, settings)
    assert list(result.failed) == [7]
    assert result.images == 39
    with pytest.raises(DataError, match="1 of 40"):
        train(toy, settings, reading=Reading(cache_dir=tmp_path, strict=True))


def test_a_cache_too_large_for_memory_gives_the_same(train, make_dual, monkeypatch) -> None:
    a, b = make_dual(), make_dual()
    train(a)
    monkeypatch.setattr(batches, "RESIDENT_BYTES", 0)
    train(b)
    for name, value in head(a).items():
        torch.testing.assert_close(value, head(b)[name], rtol=1e-4, atol=1e-5)


def test_a_classifier_that_is_not_finite_is_refused_at_once(train, toy, tmp_path) -> None:
    with torch.no_grad():
        next(toy.softmax_head.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match="weights of the classifier are not finite"):
        train(toy, run_dir=tmp_path / "run")
    assert not (tmp_path / "cache").exists()


def test_a_run_folder_that_cannot_be_written_is_found_before_the_work(train, toy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*checkpoint\.pt"):
        train(toy, run_dir=tmp_path / "file" / "run")
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_at_a_checkpoint(train, toy, tmp_path, monkeypatch) -> None:
    def full(self, data):
        with self.open("wb") as stream:
            stream.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    train(toy, replace(QUICK, epochs=1))  # makes the cache
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match=r"checkpoint\.pt: No space left"):
        train(toy, run_dir=tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_a_loss_that_is_not_finite_stops_the_run(train, toy, tmp_path) -> None:
    with torch.no_grad():
        next(toy.sigmoid_head.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="epoch 1, step 1; lower the learning rate"):
        train(toy, run_dir=tmp_path)


def test_deep_heads_train_too(train, make_dual) -> None:
    result = train(make_dual(deep=True, dropout=0.1), replace(QUICK, epochs=10))
    assert result.history[-1].top1 > 0.9


def test_lbfgs_reaches_the_minimum(train, make_dual) -> None:
    adam, lbfgs, again = make_dual(), make_dual(), make_dual()
    decay = {"weight_decay": 1e-3, "device": "cpu"}
    few = train(adam, replace(QUICK, weight_decay=1e-3))
    result = train(lbfgs, TrainSettings("lbfgs", epochs=60, **decay))
    assert result.gradient_norm < 1e-4  # about 1 at the start; float32 ends near 1e-5
    assert few.gradient_norm is None
    assert result.history[-1].loss < few.history[-1].loss

    # The problem is convex: the gradient by the definition is zero, from any start.
    with torch.no_grad():
        for parameter in again.sigmoid_head.parameters():
            parameter.add_(1.0)
    train(again, TrainSettings("lbfgs", epochs=60, **decay))
    for name, value in head(lbfgs).items():
        torch.testing.assert_close(value, head(again)[name], rtol=1e-2, atol=1e-2)


def test_lbfgs_resumes_where_it_was(train, make_dual, tmp_path, monkeypatch) -> None:
    settings = TrainSettings("lbfgs", epochs=4, device="cpu")
    straight, first, second, third = (make_dual() for _ in range(4))
    train(straight, settings)
    train(first, replace(settings, epochs=2), run_dir=tmp_path / "a")
    train(second, settings, run_dir=tmp_path / "a", resume=True)
    assert_same(head(straight), head(second))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 20)
        with pytest.raises(KeyboardInterrupt):
            train(third, settings, run_dir=tmp_path / "b")
    train(third, settings, run_dir=tmp_path / "b", resume=True)
    assert_same(head(straight), head(third))


def test_lbfgs_refuses_heads_that_are_not_linear(train, make_dual) -> None:
    with pytest.raises(UsageError, match="isn't linear in its parameters, so use Adam"):
        train(make_dual(deep=True), TrainSettings("lbfgs", device="cpu"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": "sgd"},
        {"schedule": "linear"},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1.0},
        {"epochs": 0},
        {"batch_size": 1.5},
        {"positive_weight": 0.0},
        {"val_fraction": 1.0},
        {"seed": -1},
        {"cache_dtype": "int8"},
        {"optimizer": "lbfgs", "schedule": "cosine"},
        {"optimizer": "lbfgs", "cached": False},
        {"labels": "guessed"},
        {"labels": "predicted", "temperature": 0.0},
        {"labels": "predicted", "temperature": -1.0},
        {"labels": "predicted", "temperature": float("inf")},
        {"labels": "predicted", "temperature": float("nan")},
        {"temperature": 2.0},
        {"init": "xavier"},
    ],
)
def test_wrong_settings(wrong: dict) -> None:
    with pytest.raises(UsageError):
        TrainSettings(**wrong)


def test_defaults() -> None:
    settings = TrainSettings()
    assert settings.steps == (0.003, 3, 32)
    assert settings.weight_decay is None  # `default_weight_decay`
    assert settings.positive_weight is None
    assert (settings.labels, settings.temperature, settings.init) == ("given", None, None)


def test_weight_decay_is_as_strong_for_each_class_whatever_their_number(train, make_dual) -> None:
    toy, same, deep = make_dual(), make_dual(), make_dual(deep=True)
    default = replace(QUICK, weight_decay=None)
    assert train(toy, default).weight_decay == default_weight_decay(4, own=True) == 0.0375
    train(same, replace(QUICK, weight_decay=0.0375))
    assert_same(head(toy), head(same))
    assert train(deep, default).weight_decay == 5e-4
    assert train(toy, default, by=fit_softmax_head).weight_decay == 5e-4


def test_wrong_calls(train, toy, views, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"input size \[16, 16\]"):
        higher = replace(views.preprocessing, height=18)
        train(toy, given=replace(views, preprocessing=higher))
    with pytest.raises(UsageError, match="device must be"):
        train(toy, replace(QUICK, device="tpu"))
    with pytest.raises(DataError, match="leaves 40 of 40"):
        train(toy, replace(QUICK, val_fraction=0.001))
    first, *others = views.dataset.samples
    unlabelled = replace(views.dataset, samples=[replace(first, label=None), *others])
    with pytest.raises(
        DataError, match=r"1 of 40 have none:\n.*class0: class0/0\.png has no class"
    ):
        train(toy, given=replace(views, dataset=unlabelled))
    with pytest.raises(DataError, match="no class 'class0'"):
        train(toy, class_names=("a", "b", "c", "class3"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        train(toy, run_dir=tmp_path / "file" / "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_cuda_that_is_not_there_is_an_error(train, toy) -> None:
    with pytest.raises(BackendUnavailableError, match="sees 0 GPUs"):
        train(toy, replace(QUICK, device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_learns_too(train, toy) -> None:
    result = train(toy, replace(QUICK, device="cuda", epochs=12))
    assert result.history[-1].top1 > 0.9
