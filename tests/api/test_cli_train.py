"""`sigcam train` without labels, with the paper's initialisation, and with its presets."""

from __future__ import annotations

import shutil

import pytest
import torch

from sigcam.classifier.branch_file import read_branch_info
from sigcam.classifier.zoo import load_model
from sigcam.images.preprocess import read_input
from sigcam.train import branch as branch_module

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(toy):
    """Weights of the toy network that tell green from red."""
    loaded = load_model(toy.arch, None, 2)
    layers, last = loaded.model[:-1].eval(), loaded.model[-1]
    preprocessing = loaded.preprocessing
    means = []
    for kind in ("green", "red"):
        files = sorted((toy.data / kind).iterdir())
        pixels = [torch.from_numpy(read_input(file, preprocessing).tensor) for file in files]
        images = torch.stack(pixels).permute(0, 3, 1, 2).float() / 255
        mean, std = (
            torch.tensor(value).reshape(1, 3, 1, 1)
            for value in (preprocessing.mean, preprocessing.std)
        )
        with torch.no_grad():
            means.append(layers((images - mean) / std).mean(0))
    with torch.no_grad():
        last.weight.copy_(torch.stack(means))
        last.bias.copy_(-last.weight.square().sum(1) / 2)  # the class of the nearer mean
    torch.save(loaded.model.state_dict(), toy.folder / "told.pth")
    return toy.folder / "told.pth"


@pytest.fixture
def train(toy, cli, weights, tmp_path):
    def run(data, *options):
        return cli(
            "train", "--arch", toy.arch, "--num-classes", 2, "--weights", weights, "--data", data,
            "--cache-dir", tmp_path / "cache", "--size", 32, "--views", 2, "--epochs", 2,
            "--out", tmp_path / "branch.safetensors", *options,
        )  # fmt: skip

    return run


@pytest.fixture
def plain(toy, tmp_path):
    """The images in one folder, without classes."""
    (tmp_path / "plain").mkdir()
    for kind in ("green", "red"):
        for file in (toy.data / kind).iterdir():
            shutil.copy(file, tmp_path / "plain" / f"{kind}-{file.name}")
    return tmp_path / "plain"


@pytest.mark.parametrize("options", [[], ["--temperature", 2, "--live", "--val-fraction", 0.25]])
def test_a_plain_folder_without_labels(train, plain, tmp_path, options):
    done = train(plain, "--labels", "predicted", *options)
    assert done.exit_code == 0, done.stderr
    assert "agreement with the classifier" in done.stderr
    assert ("held-out agreement" in done.stderr) == bool(options)
    info = read_branch_info(tmp_path / "branch.safetensors")
    assert "labels predicted by the classifier" in info.trained_on
    assert (info.settings["labels"], info.settings["temperature"]) == (
        "predicted", 2.0 if options else None,
    )  # fmt: skip
    assert info.settings["init"] == "softmax"


def test_labels_that_are_there_are_not_used(train, toy, tmp_path):
    shutil.copytree(toy.data, tmp_path / "data")
    (tmp_path / "data" / "red").rename(tmp_path / "data" / "wolf")
    (tmp_path / "data" / "cow").mkdir()
    shutil.copy(toy.data / "red" / "0.png", tmp_path / "data" / "cow" / "0.png")
    done = train(tmp_path / "data", "--labels", "predicted")
    assert done.exit_code == 0, done.stderr
    assert read_branch_info(tmp_path / "branch.safetensors").class_names == ()


def test_a_plain_folder_with_labels_wanted(train, plain):
    refused = train(plain)
    assert refused.exit_code == 1
    assert "no data set of these forms" in refused.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--temperature", 2], "ask for labels 'predicted'"),
        (["--labels", "predicted", "--temperature", 0], "finite and above 0"),
        (["--labels", "predicted", "--temperature", "inf"], "finite and above 0"),
        (["--labels", "predicted", "--new-classes"], "needs --labels given"),
        (["--method", "gradcam"], "of a --preset"),
        (["--preset", "paper-cub"], "the paper has no"),
        (["--preset", "paper-dogs"], "paper-openimages"),
    ],
)
def test_options_that_do_not_go_together(train, toy, tmp_path, options, words):
    refused = train(toy.data, *options)
    assert refused.exit_code == 2
    assert words in refused.stderr
    assert "loading the model" not in refused.stderr
    assert not (tmp_path / "branch.safetensors").exists()


def test_a_classifier_that_predicts_one_class(train, weights, plain, tmp_path):
    state = torch.load(weights, weights_only=True)
    state["6.bias"] += torch.tensor([0.0, 1e6])
    torch.save(state, tmp_path / "one.pth")
    refused = train(plain, "--labels", "predicted", "--weights", tmp_path / "one.pth")
    assert refused.exit_code == 1
    assert "predicts class 1 for all 8 images" in refused.stderr
    assert not (tmp_path / "branch.safetensors").exists()


def test_the_papers_initialisation(train, toy, tmp_path):
    done = train(toy.data, "--init", "paper")
    assert done.exit_code == 0, done.stderr
    assert read_branch_info(tmp_path / "branch.safetensors").settings["init"] == "paper"


class AskedError(Exception):
    """What `train_branch` was asked for."""


@pytest.fixture
def asked(toy, cli, tmp_path, monkeypatch):
    """Runs the command up to the training, and returns what that is asked for."""

    def stop(classifier, dataset, settings, **options):
        raise AskedError({"settings": settings, "size": classifier.dual.input_size, **options})

    def run(*options):
        monkeypatch.setattr(branch_module, "train_branch", stop)
        out = tmp_path / "branch.safetensors"
        done = cli(
            "train", "--arch", "wsol-resnet50", "--num-classes", 2, "--data", toy.data,
            "--out", out, *options,
        )  # fmt: skip
        assert isinstance(done.exception, AskedError), done.stderr
        return done.exception.args[0]

    return run


def test_a_preset(asked):
    made = asked("--preset", "paper-cub", "--method", "gradcam", "--seed", 3)
    settings, augmentation = made["settings"], made["augmentation"]
    assert settings.steps == (5e-3, 12, 32)
    assert (settings.weight_decay, settings.init, settings.cached) == (5e-4, "paper", False)
    assert (settings.positive_weight, settings.seed, augmentation.seed) == (None, 3, 3)
    assert augmentation.crop_scale == (0.765625, 0.765625)
    assert (made["preprocessing"].rule, made["size"]) == ("stretch", (224, 224))
    assert asked("--preset", "paper-cars")["settings"].steps == (1e-4, 10, 32)


def test_options_beside_a_preset_win(asked):
    made = asked(
        "--preset", "paper-cub", "--lr", 0.02, "--epochs", 3, "--init", "default", "--cached",
        "--crop-scale", 0.35, 1.0, "--no-flip", "--size", 64, "--resize-rule", "crop",
    )  # fmt: skip
    settings, augmentation = made["settings"], made["augmentation"]
    assert settings.steps == (0.02, 3, 32)
    assert (settings.weight_decay, settings.init, settings.cached) == (5e-4, "default", True)
    assert (augmentation.crop_scale, augmentation.flip) == ((0.35, 1.0), False)
    assert (made["preprocessing"].rule, made["size"]) == ("crop", (64, 64))


def test_a_presets_numbers_for_adam_are_not_those_of_another_optimizer(asked):
    made = asked("--preset", "paper-cub", "--optimizer", "lbfgs", "--cached")
    assert made["settings"].steps == (1.0, 20, 4096)
    assert made["settings"].weight_decay == 5e-4
