"""Training a branch from a classifier's name and a folder to a file that brings it back."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from sigcam.classifier.branch_file import read_branch_info
from sigcam.classifier.build import build_classifier
from sigcam.core.errors import DataError, UsageError
from sigcam.data import open_dataset
from sigcam.train.augment import Augmentation
from sigcam.train.branch import train_branch
from sigcam.train.settings import Reading, TrainSettings
from sigcam.train.views import FeatureRunner, TrainingViews
from tests.support import toy as support

ARCH = f"{support.__file__}:toy_model"
SETTINGS = TrainSettings(epochs=2, batch_size=8)


def train(classifier, folder, tmp_path, **options):
    said = []
    trained = train_branch(
        classifier,
        open_dataset(folder),
        SETTINGS,
        augmentation=Augmentation(2),
        reading=Reading(tmp_path / "cache"),
        run_dir=tmp_path / "run",
        progress=False,
        say=said.append,
        **options,
    )
    return trained, said


def test_the_file_brings_the_branch_back(folder, tmp_path):
    classifier = build_classifier(ARCH, size=56)
    assert not classifier.has_sigmoid
    softmax = {n: t.clone() for n, t in classifier.dual.softmax_head.state_dict().items()}
    trained, said = train(classifier, folder, tmp_path)
    assert [text.partition(" (")[0] for text in said[:-1]] == [
        "the sigmoid branch begins after forward:relu and has 52 parameters: fc",
        "training the sigmoid branch",
    ]
    assert said[-1].startswith("features by PyTorch: 80 views take")
    assert trained.classifier.has_sigmoid
    assert trained.classifier.trained_on == trained.info.trained_on
    assert trained.result.counts in trained.info.trained_on
    for name, tensor in classifier.dual.softmax_head.state_dict().items():
        assert torch.equal(tensor, softmax[name]), name
    written = trained.save(tmp_path / "branch.safetensors")
    assert read_branch_info(tmp_path / "branch.safetensors") == written
    again = build_classifier(branch_file=tmp_path / "branch.safetensors", weights="random")
    assert again.class_names == open_dataset(folder).classes
    for name, tensor in again.dual.sigmoid_head.state_dict().items():
        assert torch.equal(tensor, trained.classifier.dual.sigmoid_head.state_dict()[name]), name


def test_new_classes_are_trained_first(folder, tmp_path):
    classifier = build_classifier(ARCH, size=56, new_classes=4)
    before = [t.clone() for t in classifier.dual.softmax_head.parameters()]
    trained, said = train(classifier, folder, tmp_path)
    assert said[0] == "training the new softmax head"
    assert said[1].startswith("features by PyTorch")  # which serve both heads
    assert "they begin fresh" in said[2]
    assert len(said) == 4
    after = list(trained.classifier.dual.softmax_head.parameters())
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert (tmp_path / "run" / "softmax").is_dir()
    assert trained.info.replaced_classes
    assert trained.info.settings["views"] == 2


def test_words_for_what_it_was_trained_on(folder, tmp_path):
    trained, _ = train(build_classifier(ARCH, size=56), folder, tmp_path, trained_on="colours")
    assert trained.info.trained_on == "colours"


def test_classes_that_the_model_does_not_have(folder, tmp_path):
    classifier = build_classifier(ARCH, size=56, num_classes=3)
    with pytest.raises(DataError, match="classes"):
        train(classifier, folder, tmp_path)


@pytest.fixture
def unlabelled(data):
    samples = [replace(one, label=None) for one in data.samples]
    return replace(data, samples=samples, classes=None)


@pytest.mark.parametrize(
    ("temperature", "words"), [(None, ""), (2.5, r" \(softmax at temperature 2\.5\)")]
)
def test_images_without_classes(unlabelled, tmp_path, temperature, words):
    classifier = build_classifier(ARCH, size=56)
    bias = classifier.dual.softmax_head.named_tensors()["fc.bias"]
    bias.sub_(typical_logits(classifier, unlabelled))
    settings = replace(SETTINGS, labels="predicted", temperature=temperature)
    options = {"reading": Reading(tmp_path / "cache"), "progress": False}
    trained = train_branch(classifier, unlabelled, settings, **options)
    assert re.search(rf"views of each, labels predicted by the classifier{words}$", (
        trained.info.trained_on
    ))  # fmt: skip
    trained.save(tmp_path / "branch.safetensors")
    kept = read_branch_info(tmp_path / "branch.safetensors").settings
    assert (kept["labels"], kept["temperature"]) == ("predicted", temperature)
    assert trained.info.class_names == ()
    with pytest.raises(DataError, match="every image needs a class"):
        train_branch(classifier, unlabelled, SETTINGS, **options)


def typical_logits(classifier, dataset):
    """Logits that, taken away, leave several classes predicted by an untrained network."""
    views = TrainingViews(dataset, classifier.preprocessing)
    run = FeatureRunner(classifier.dual, classifier.preprocessing, torch.device("cpu"), "softmax")
    pixels = np.concatenate([views.pixels(i, [0]) for i in range(0, 40, 3)])
    return classifier.dual.softmax_head.classifier(run(pixels)).mean(0).detach()


def test_a_last_layer_that_was_remade_needs_labels(data, tmp_path):
    settings = replace(SETTINGS, labels="predicted")
    options = {"reading": Reading(tmp_path / "cache"), "progress": False}
    classifier = build_classifier(ARCH, size=56, new_classes=4)
    with pytest.raises(UsageError, match=r"re-made for new classes.* needs labels"):
        train_branch(classifier, data, settings, **options)
    train_branch(classifier, data, replace(SETTINGS, epochs=20), **options).save(
        tmp_path / "branch.safetensors"
    )
    # Its last layer is trained now.
    again = build_classifier(branch_file=tmp_path / "branch.safetensors", weights="random")
    assert train_branch(again, data, settings, **options).info.replaced_classes
