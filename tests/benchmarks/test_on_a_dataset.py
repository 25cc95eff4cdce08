"""The benchmarks that take a data set, on a tiny one."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from sigcam.classifier.build import build_classifier
from sigcam.data import open_dataset, read_masks
from tests.support.paths import BENCHMARKS, ROOT
from tests.support.tiny_datasets import image_writer, text_writer

TINY = f"{ROOT / 'tests' / 'support' / 'tiny_network.py'}:tiny"
SMALL = f"{BENCHMARKS / 'datasets' / 'paper' / 'small_network.py'}:SmallNetwork"
PER_CLASS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve images of three classes, told apart by their colour, with boxes and trimaps."""
    folder = tmp_path_factory.mktemp("data")
    image, text = image_writer(folder), text_writer(folder)
    rng = np.random.default_rng(0)
    names = [f"images/{i:02}.png" for i in range(3 * PER_CLASS)]
    for index, name in enumerate(names):
        pixels = rng.integers(0, 40, (50, 60, 3), dtype=np.uint8)
        pixels[10:30, 20:50, index % 3] += 200
        image(name, pixels=pixels)
        mask = np.zeros((50, 60), np.uint8)
        mask[10:30, 20:50] = 255
        mask[9, 20:50] = 128
        image(f"masks/{index:02}.png", pixels=mask)
    text("metadata/image_ids.txt", *names)
    text("metadata/class_labels.txt", *(f"{name},{i % 3}" for i, name in enumerate(names)))
    text("metadata/localization.txt", *(f"{name},20,10,49,29" for name in names))
    text("metadata/masks.txt", *(f"{n},masks/{i:02}.png" for i, n in enumerate(names)))
    text("classes.txt", "blue", "green", "red")
    return folder


def run(command, *words):
    done = CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_folds_are_written_as_text_files(data, tmp_path):
    from benchmarks.datasets import write_folds

    run(write_folds.main, data, "--folds", 2, "--out", tmp_path)
    tests = []
    for fold in "01":
        train, test = (
            open_dataset(tmp_path / fold / part, root=data) for part in ("train", "test")
        )
        assert not train.problems and not test.problems
        assert len(train) == len(test) == 3 * PER_CLASS // 2
        assert train.classes == ("blue", "green", "red")
        tests += [sample.name for sample in test.samples]
    assert sorted(tests) == [sample.name for sample in open_dataset(data).samples]


def test_a_dataset_many_times_over(data, tmp_path):
    from benchmarks.datasets import evaluate_cost

    once = open_dataset(data).samples
    twice = open_dataset(evaluate_cost.repeated(once, 2, tmp_path)).samples
    assert len({sample.name for sample in twice}) == len(twice) == 2 * len(once)
    for copy, sample in zip(twice, [*once, *once], strict=True):
        assert (copy.label, copy.size) == (sample.label, sample.size)
        np.testing.assert_array_equal(copy.boxes, sample.boxes)
        for got, want in zip(read_masks(copy), read_masks(sample), strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.slow
def test_choices_are_compared_with_the_defaults(data, tmp_path, monkeypatch):
    from benchmarks.datasets import training_choices

    few = [training_choices.Choice("defaults"), training_choices.Choice("1 epoch", {"epochs": 1})]
    monkeypatch.setattr(training_choices, "choices", lambda num_classes: few)
    out = tmp_path / "table.md"
    words = ["--folds", 2, "--arch", TINY, "--weights", "random", "--cache", tmp_path / "cache"]
    printed = run(training_choices.main, data, *words, "--out", out)
    lines = out.read_text().splitlines()
    assert out.read_text().strip() in printed
    labels = [line.split("|")[1].strip() for line in lines[2:]]
    kinds = ("defaults", "1 epoch", "softmax branch", "centred branch")
    expected = [kind + end for kind in kinds for end in ("", ", no clamping")]
    assert labels == [*expected, "softmax branch, no clamping, signed"]
    assert "MaxBoxAccV2" in lines[0] and "PxAP" in lines[0]
    # A difference, its interval and one of each fold.
    assert lines[3].count(";") == lines[0].count("|") - 2


def test_every_choice_takes_as_many_steps_unless_that_is_the_choice():
    from benchmarks.datasets.training_choices import choices

    every = choices(5)
    assert len({choice.label for choice in every}) == len(every)
    for choice in every:
        settings, augmentation = choice.made(0)
        if settings.optimizer == "adam" and "epochs" not in choice.settings:
            assert settings.epochs * augmentation.views == 36


@pytest.mark.slow
def test_a_network_from_scratch_for_each_fold(data, tmp_path):
    from benchmarks.datasets import train_scratch

    printed = run(train_scratch.main, data, "--folds", 2, "--epochs", 1, "--out", tmp_path)
    assert printed.count("of the held-out images right") == 2
    weights = str(tmp_path / "1.safetensors")
    built = build_classifier(SMALL, weights=weights, num_classes=3, size=128)
    assert built.dual.targets[0].layout.shape == (256, 8, 8)


@pytest.mark.slow
def test_a_table_of_the_paper_from_training_on(data, tmp_path):
    from benchmarks.datasets import paper_tables

    words = ["--folds", 2, "--arch", TINY, "--weights", "random", "--table", "5", "--views", 2]
    run(paper_tables.main, data, *words, "--work", tmp_path / "work", "--out", tmp_path / "t.md")
    text = (tmp_path / "t.md").read_text()
    assert "12 images of 3 classes, 2 folds" in text
    rows = [line for line in text.splitlines() if line.startswith("| positive weight")]
    assert len(rows) == 3
    assert rows[0].split("|")[2:] == rows[1].split("|")[2:]  # with three classes (C-1)/2 is 1


def tree(folder, name):
    """A made-up data set in the layout that one of the paper's has; the words that open it."""
    image, text = image_writer(folder), text_writer(folder)
    rng = np.random.default_rng(1)
    names = [f"{'cba'[i % 3]}/{i:02}.png" for i in range(3 * PER_CLASS)]
    places = {"cub": "CUB", "imagenet": "ILSVRC", "openimages": "OpenImages", "cars": "cars"}
    root = f"dataset/{places[name]}"
    for index, one in enumerate(names):
        pixels = rng.integers(0, 40, (50, 60, 3), dtype=np.uint8)
        pixels[10:30, 20:50, index % 3] += 200
        image(f"{root}/{one}", pixels=pixels)
    if name == "cars":  # class folders
        return [folder / root]
    lists = f"metadata/{places[name]}"
    text(f"{lists}/test/image_ids.txt", *names)
    text(f"{lists}/test/class_labels.txt", *(f"{one},{i % 3}" for i, one in enumerate(names)))
    words = [folder / root, "--metadata", folder / lists, "--split", "test"]
    if name != "openimages":
        text(f"{lists}/test/image_sizes.txt", *(f"{one},60,50" for one in names))
        text(f"{lists}/test/localization.txt", *(f"{one},20,10,49,29" for one in names))
        return words
    mask = np.zeros((50, 60), np.uint8)
    mask[10:30, 20:50] = 255
    image("masks/object.png", pixels=mask)
    image("masks/ignore.png", pixels=np.zeros((50, 60), np.uint8))
    text(f"{lists}/test/localization.txt", *(f"{one},object.png,ignore.png" for one in names))
    return [*words, "--mask-root", folder / "masks"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "table", "label", "figure"),
    [
        ("cub", "1", "Average Drop", "13.86"),
        ("cars", "1", "Average Drop", "3.77"),
        ("imagenet", "2", "MaxBoxAccV2", "64.73"),
        ("openimages", "2", "PxAP", "60.49"),
    ],
)
def test_the_figures_of_the_paper_below_ours(name, table, label, figure, tmp_path, monkeypatch):
    from benchmarks.datasets import paper_tables
    from benchmarks.datasets.paper import tables

    monkeypatch.setattr(tables, "METHODS", ("cam",))
    data = tree(tmp_path, name)
    words = ["--folds", 2, "--arch", TINY, "--weights", "random", "--views", 1, "--epochs", 1]
    out = ["--work", tmp_path / "work", "--out", tmp_path / "t.md"]
    run(paper_tables.main, *data, *words, "--table", table, "--dataset", name, *out)
    text = (tmp_path / "t.md").read_text()
    lines = [
        [cell.strip() for cell in line.split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    column = next(i for i, cell in enumerate(lines[0]) if cell.startswith(label))
    ours = next(i for i, line in enumerate(lines) if line[1] == "cam, sigmoid branch")
    theirs = next(line for line in lines[ours:] if line[1] == "paper, ResNet-50")
    assert theirs[column] == figure
    assert lines[ours][column]
    assert "What differs: architecture: " in text
    assert "6 images to train on and 12 scored, of 3 classes, here" in text
