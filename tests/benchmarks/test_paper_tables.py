"""The paper's tables: how data are split, which artifacts are made, how a table looks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigcam.core.errors import DataError, UsageError
from sigcam.core.spec import Preprocessing
from sigcam.data import Dataset, Place, Sample
from sigcam.evaluate.results.bootstrap import Comparison, Estimate
from sigcam.train.views import TrainingViews


def samples(labels):
    return [
        Sample(f"{i}.png", Path(f"/data/{i}.png"), Place(Path("ids")), label)
        for i, label in enumerate(labels)
    ]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(5, 12), min_size=1, max_size=4), st.integers(2, 5), st.integers(0, 9))
def test_folds_share_every_class_evenly(sizes, folds, seed):
    from benchmarks.datasets.paper.folds import split_folds

    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    parts = split_folds(samples(labels), folds, seed)
    assert sorted(index for part in parts for index in part) == list(range(len(labels)))
    for label in range(len(sizes)):
        counts = [Counter(labels[i] for i in part)[label] for part in parts]
        assert max(counts) - min(counts) <= 1
    assert parts == split_folds(samples(labels), folds, seed)


@pytest.mark.parametrize("folds", [0, 1, 4])
def test_folds_that_a_class_is_too_small_for(folds):
    from benchmarks.datasets.paper.folds import split_folds

    with pytest.raises(UsageError, match="folds must be from 2 to 3"):
        split_folds(samples([0] * 9 + [1] * 3), folds)


def test_each_fold_is_scored_by_what_was_trained_on_the_others():
    from benchmarks.datasets.paper.folds import fold_datasets

    dataset = Dataset("tiny", Path("tiny.csv"), "csv", ("a", "b"), samples([0, 1] * 6))
    pairs = fold_datasets(dataset, 3)
    names = [{sample.name for sample in scored.samples} for _, scored in pairs]
    assert set().union(*names) == {sample.name for sample in dataset.samples}
    assert sum(map(len, names)) == 12
    for (training, _), scored in zip(pairs, names, strict=True):
        assert {sample.name for sample in training.samples} | scored == set().union(*names)
        assert not {sample.name for sample in training.samples} & scored


def test_a_name_of_weights_takes_the_fold():
    from benchmarks.datasets.paper.recipe import weights_of

    assert weights_of("out/{fold}.safetensors", 2) == "out/2.safetensors"
    assert weights_of("DEFAULT", 2) == "DEFAULT"
    assert weights_of(None, 2) is None


def test_a_part_is_a_training_set_of_the_data_sets_own_ids():
    dataset = Dataset("tiny", Path("tiny.csv"), "csv", ("a", "b"), samples([1, 0, 1]))
    views = TrainingViews(replace(dataset, ids_given=True), Preprocessing(8, 8, "stretch"))
    matched = views.matched(2).dataset
    assert [one.path for one in matched.samples] == [Path(f"/data/{i}.png") for i in range(3)]
    assert matched.labels.tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="1 of 2 have none"):
        replace(views, dataset=replace(dataset, samples=samples([1, None]))).matched(2)


@pytest.mark.parametrize("number", ["1", "2", "4", "5", "shift"])
def test_each_row_is_another_artifact(number):
    from benchmarks.datasets.paper.tables import TABLES

    rows = TABLES[number].variants(5)
    assert len({variant.name for variant in rows.values()}) == len(rows)


def test_a_table_shows_its_metrics_and_leaves_out_what_the_data_have_not():
    from benchmarks.datasets.paper.tables import TABLES

    table = TABLES["5"]
    estimate = Estimate(12.345, 10, 14)
    found = {"average_drop": Comparison(estimate, estimate)}
    values = {variant.name: found for variant in table.variants(5).values()}
    text = table.markdown(values, 5)
    assert text.count("12.35 (10.0 to 14.0)") + text.count("12.34 (10.0 to 14.0)") == 3
    assert "Average Drop" in text
    assert "PxAP" not in text
    for weight in ("= 1 ", "= 2 ", "= 4 "):
        assert weight in text


def test_the_figures_of_the_paper_are_whole():
    from benchmarks.datasets.paper.figures import DATASETS, read_figures

    figures = read_figures()
    assert "BMVC 2025" in figures["source"]
    assert tuple(figures["datasets"]) == DATASETS
    assert [len(figures[f"table{n}"]) for n in range(1, 6)] == [40, 12, 3, 12, 16]


@pytest.mark.parametrize(
    ("dataset", "arch", "variant", "wanted"),
    [
        ("cub", "wsol-resnet50", ("cam", "sigmoid"), {"ResNet-50": (13.86, 18.42)}),
        ("cars", "vgg16", ("layercam", "softmax", False), {"VGG-16": (47.51, 9.7)}),
        ("cars", "tiny", ("cam", "softmax", False),
         {"VGG-16": (31.45, 9.68), "ResNet-50": (48.86, 4.32)}),
        ("imagenet", "inception_v3", ("cam", "sigmoid"), {}),
        ("cub", "wsol-inceptionv3", ("cam", "sigmoid"), {}),
    ],
)  # fmt: skip
def test_a_row_finds_its_figures_in_the_first_table(dataset, arch, variant, wanted):
    from benchmarks.datasets.paper.figures import PaperFigures
    from benchmarks.datasets.paper.recipe import Variant

    rows = PaperFigures(dataset, arch).rows("1", Variant(*variant), 200)
    assert {b: (row["average_drop"], row["increase"]) for b, row in rows.items()} == wanted


@pytest.mark.parametrize(
    ("dataset", "number", "variant", "wanted"),
    [
        ("imagenet", "2", ("cam", "softmax", False),
         {"top1_cls": 73.89, "top1_loc": 47.69, "gt_known": 60.8, "max_box_acc_v2": 63.53}),
        ("openimages", "2", ("gradcam", "sigmoid"), {"top1_cls": 74.02, "pxap": 60.24}),
        ("imagenet", "4", ("cam", "sigmoid", False),
         {"top1_loc": 39.82, "gt_known": 50.22, "max_box_acc_v2": 55.78}),
        ("imagenet", "5", ("cam", "sigmoid", None, 499.5),
         {"top1_loc": 49.27, "gt_known": 62.36, "max_box_acc_v2": 64.59}),
        ("imagenet", "4", ("cam", "softmax", True), None),
        ("openimages", "4", ("cam", "sigmoid", False), None),
        ("imagenet", "2", ("xgradcam", "sigmoid"), None),
    ],
)  # fmt: skip
def test_a_row_finds_its_figures_in_the_other_tables(dataset, number, variant, wanted):
    from benchmarks.datasets.paper.figures import PaperFigures
    from benchmarks.datasets.paper.recipe import Variant

    rows = PaperFigures(dataset, "resnet50").rows(number, Variant(*variant), 1000)
    assert rows == ({} if wanted is None else {"ResNet-50": wanted})


def test_positive_weights_are_matched_by_what_they_are():
    from benchmarks.datasets.paper.figures import PaperFigures
    from benchmarks.datasets.paper.recipe import Variant

    paper = PaperFigures("imagenet", "vgg16")

    def gt_known(weight, num_classes):
        variant = Variant("gradcam", "sigmoid", positive_weight=weight)
        (row,) = paper.rows("5", variant, num_classes).values()
        return row["gt_known"]

    assert gt_known(1.0, 7) == gt_known(1.0, 1000) == 12.45
    assert gt_known(6.0, 7) == gt_known(999.0, 1000) == 59.43
    assert gt_known(3.0, 7) == gt_known(499.5, 1000)
    assert gt_known(3.0, 7) not in (12.45, 59.43)


def test_the_paper_stands_below_ours_and_at_its_threshold():
    from benchmarks.datasets.paper.figures import PaperFigures
    from benchmarks.datasets.paper.tables import TABLES

    table = TABLES["2"]
    estimate = Estimate(50.0, 40, 60)
    found = {key: Comparison(estimate, estimate) for key in ("gt_known", "gt_known_best", "pxap")}
    values = {variant.name: found for variant in table.variants(1000).values()}
    alone = table.markdown(values, 1000).splitlines()
    beside = table.markdown(values, 1000, PaperFigures("imagenet", "vgg16")).splitlines()
    assert "threshold 0.2" not in alone[0]
    cells = [cell.strip() for cell in beside[0].split("|")]
    assert cells[2:5] == ["GT-known Loc, threshold 0.2 ↑", "GT-known Loc ↑", "PxAP ↑"]
    assert [cell.strip() for cell in beside[3].split("|")][1:5] == [
        "paper, VGG-16",
        "59.54",
        "",
        "",
    ]
    assert len(beside) == len(alone) + 4  # CAM and Grad-CAM, either branch
