"""What errors of training advise works: each case triggers one and then follows it."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from torch import nn

from sigcam.classifier.build import BuiltClassifier
from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import SigcamError, TrainingError, UsageError
from sigcam.export import ExportOptions, export_artifact
from sigcam.train.branch import train_branch
from sigcam.train.loop import fit_sigmoid_head
from sigcam.train.presets import preset
from sigcam.train.settings import Reading, TrainSettings

QUICK = TrainSettings(epochs=1, batch_size=40, device="cpu")

# Settings that are wrong, what is said, and each thing that it advises.
SETTINGS = {
    "a schedule of steps": (
        {"optimizer": "lbfgs", "schedule": "cosine"}, "use the schedule 'constant'",
        [{"optimizer": "lbfgs", "schedule": "constant"}],
    ),
    "samples that change": (
        {"optimizer": "lbfgs", "cached": False}, "use cached features", [{"optimizer": "lbfgs"}],
    ),
    "a temperature": (
        {"temperature": 2.0, "labels": "given"}, "ask for labels 'predicted', or leave it out",
        [{"temperature": 2.0, "labels": "predicted"}, {"labels": "given"}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_advice_on_settings_works(case):
    wrong, words, right = SETTINGS[case]
    with pytest.raises(UsageError, match=words):
        TrainSettings(**wrong)
    for settings in right:
        TrainSettings(**settings)


def test_other_architectures_and_methods_of_a_preset():
    with pytest.raises(
        UsageError, match=r"take the method gradcam, or the architecture wsol-vgg16"
    ):
        preset("paper-cub", "wsol-vgg16-mlp", "cam")
    assert preset("paper-cub", "wsol-vgg16-mlp", "gradcam").settings
    assert preset("paper-cub", "wsol-vgg16", "cam").settings
    with pytest.raises(UsageError, match=r"Give the numbers as options \(learning rate") as got:
        preset("paper-cub", "resnet18", "cam")
    listed = str(got.value).partition("is for ")[2].partition(". Give")[0].split(", ")
    assert all(preset("paper-cub", name, "gradcam").settings for name in listed)
    TrainSettings(learning_rate=0.1, epochs=1, batch_size=8, weight_decay=0.1, init="paper")


def fit(dual, views, tmp_path, settings=QUICK, **options):
    reading = Reading(cache_dir=tmp_path / "cache", workers=1)
    return fit_sigmoid_head(dual, views, settings, reading=reading, progress=False, **options)


def test_another_optimizer_for_a_deep_head(make_dual, views, tmp_path):
    lbfgs = replace(QUICK, optimizer="lbfgs", learning_rate=1.0)
    with pytest.raises(UsageError, match=r"isn't linear in its parameters, so use Adam"):
        fit(make_dual(deep=True), views, tmp_path, lbfgs)
    assert fit(make_dual(deep=True), views, tmp_path).history


def test_a_run_that_cannot_go_on(toy, views, tmp_path):
    with pytest.raises(TrainingError, match=r"to resume; start without it"):
        fit(toy, views, tmp_path, run_dir=tmp_path / "run", resume=True)
    assert fit(toy, views, tmp_path, run_dir=tmp_path / "run").history
    with pytest.raises(TrainingError, match=r"of another run .*; use the same or start anew"):
        other = replace(QUICK, learning_rate=0.1)
        fit(toy, views, tmp_path, other, run_dir=tmp_path / "run", resume=True)
    longer = replace(QUICK, epochs=2)
    assert (
        len(fit(toy, views, tmp_path, longer, run_dir=tmp_path / "run", resume=True).history) == 2
    )


def test_a_validation_share_that_leaves_nothing(toy, views, tmp_path):
    with pytest.raises(SigcamError, match=r"a validation share of .*; change it"):
        fit(toy, views, tmp_path, replace(QUICK, val_fraction=0.001))
    assert fit(toy, views, tmp_path, replace(QUICK, val_fraction=0.25)).history


def test_damaged_features_are_made_anew(toy, views, tmp_path):
    fit(toy, views, tmp_path)
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    for file in folder.iterdir():
        if file.is_file():
            file.write_bytes(b"x")
    with pytest.raises(SigcamError, match=f"is damaged; delete .*{folder.name}"):
        fit(toy, views, tmp_path)
    shutil.rmtree(folder)
    assert fit(toy, views, tmp_path).history


class Mean(nn.Module):
    """Two networks and the mean of their logits."""

    def __init__(self, make):
        super().__init__()
        self.one, self.two = make(), make()

    def forward(self, x):
        return (self.one(x) + self.two(x)) / 2


@pytest.mark.slow
def test_a_classifier_that_can_have_no_branch(make_model, data, preprocessing, tmp_path):
    dual = DualBranch(Mean(make_model), input_size=16, target_layers=["one.conv2"])
    built = BuiltClassifier(dual, "mean", preprocessing, ())
    with pytest.raises(UsageError, match=r"export with the branch softmax or centred, which need"):
        train_branch(built, data, QUICK)
    for branch in ("softmax", "centred"):
        options = ExportOptions(method="gradcam", branch=branch)
        assert export_artifact(built, tmp_path / "m.onnx", options).branch == branch


@pytest.mark.slow
def test_a_branch_that_was_trained_before(make_dual, data, preprocessing, tmp_path):
    built = BuiltClassifier(make_dual(), "toy", preprocessing, ())
    reading = Reading(cache_dir=tmp_path / "cache", workers=1)
    paper = replace(QUICK, init="paper")
    trained = train_branch(built, data, QUICK, reading=reading)
    again = trained.classifier
    with pytest.raises(UsageError, match=r"Take the init 'default' to go on from it, or weights"):
        train_branch(again, data, paper, reading=reading)
    default = replace(QUICK, init="default")
    train_branch(again, data, default, reading=reading)
    anew = BuiltClassifier(make_dual(), "toy", preprocessing, ())
    train_branch(anew, data, paper, reading=reading)
