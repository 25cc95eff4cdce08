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
