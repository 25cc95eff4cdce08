"""The study's parts on arrays that are small enough to know what must come out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnxruntime")

from benchmarks.map_quality.__main__ import subset
from benchmarks.map_quality.heads import Fit, Samples, mlp, train_sigmoid, train_softmax
from benchmarks.map_quality.measure import grid_pointing
from benchmarks.map_quality.report import cell, compare, read, summary_table, task_table
from benchmarks.map_quality.sources import Source
from sigcam.data import Dataset, Place, Sample
from sigcam.evaluate.localization.grid_pointing import tile_shares
from tests.support import oracle

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.random((2, 6, 4, 4)).astype(np.float16)
IDS = np.array([[0, 2], [1, 1]])


def linear():
    torch.manual_seed(0)
    return nn.Linear(6, 3)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("nwc", "signed"), [(False, False), (True, False), (False, True)])
def test_maps_are_those_of_the_definition(centred, nwc, signed):
    head = linear()
    W = head.weight.detach().numpy()
    rows = (oracle.centred(W) if centred else W)[IDS]
    want = oracle.cams(FEATURES, rows, nwc, signed)
    got = Source(head, centred=centred, nwc=nwc, signed=signed).cams(FEATURES, IDS)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam"])
def test_maps_behind_a_hidden_layer_are_finite_and_differ_by_class(method):
    torch.manual_seed(0)
    head = mlp(6, 3).eval()
    source = Source(head, is_pooled=False, method=method)
    one, other = source.cams(FEATURES, IDS)[0]
    assert np.isfinite(one).all()
    assert np.abs(one - other).max() > 0


def toy(noise=0.05):
    """Three classes that three channels tell apart, two views of 30 images."""
    labels = np.arange(30) % 3
    inputs = np.eye(3)[labels][:, None].repeat(2, 1) + noise * RANDOM.random((30, 2, 3))
    return Samples(inputs.astype(np.float16), labels, 3)


def test_heads_learn():
    fit = Fit(epochs=60, learning_rate=0.1, weight_decay=0.0)
    samples = toy()
    softmax = train_softmax(samples, fit=fit)
    assert softmax.right == 1
    assert train_sigmoid(samples, fit=fit).right == 1
    # The teacher's answers, not the labels, which are wrong here.
    wrong = replace(samples, labels=np.zeros(30, np.int64))
    taught = train_sigmoid(wrong, fit=fit, softmax=softmax.module, predicted=True).module
    inputs, labels = samples.flat(None)
    assert (taught(inputs.float()).argmax(1) == labels).all()


def test_non_negative_weights_stay_so():
    fit = Fit(epochs=20, learning_rate=0.1, non_negative=True)
    head = train_sigmoid(toy(), fit=fit).module
    assert isinstance(head, nn.Linear)
    assert float(head.weight.detach().min()) == 0


def test_label_noise_changes_labels_only_where_it_is_asked_for():
    """With all labels wrong, the true class is the one that the branch denies."""
    fit = Fit(epochs=60, learning_rate=0.1, weight_decay=0.0, label_noise=1.0)
    samples = toy()
    head = train_sigmoid(samples, fit=fit).module
    inputs, labels = samples.flat(None)
    assert not (head(inputs.float()).argmax(1) == labels).any()


def test_grid_pointing_is_the_mean_over_the_tiles():
    head, labels = linear(), np.array([[0, 1, 2, 0]])
    source = Source(head)
    cams = source.cams(FEATURES[:1], labels)[0]
    want = np.mean([tile_shares(cam, i, 2, 84) for i, cam in enumerate(cams)], axis=0)
    np.testing.assert_allclose(grid_pointing(source, FEATURES[:1], labels, 2)[0], want)


def test_differences_have_intervals_over_images_and_seeds():
    base = RANDOM.random((1, 200))
    same, better = compare(base, base, True), compare(base + 0.1, base, True)
    assert (same.verdict, better.verdict) == (0, 1)
    assert better.difference == pytest.approx(10)
    assert compare(base + 0.1, base, higher=False).verdict == -1
    # Two seeds that disagree make the interval wide, however many images there are.
    seeds = np.concatenate([base + 0.1, base - 0.06])
    assert compare(seeds, base, True).verdict == 0
    assert cell(better).startswith(f"{better.value:.1f}; **+10.0**")


def test_tables_of_what_was_stored(tmp_path):
    folder = tmp_path / "results" / "net" / "30"
    folder.mkdir(parents=True)
    base = RANDOM.random(50)
    for name, shift in (("softmax", 0.0), ("sigmoid (0)", 0.1), ("sigmoid (1)", 0.12)):
        grid = np.tile((base + shift)[:, None], 20)
        np.savez(folder / f"{name}.npz", grid2=grid, average_drop=base + shift)
    found = read(folder)
    assert found["sigmoid"]["grid2"].shape == (2, 50)
    rows = task_table(found).splitlines()
    assert "**+11.0**" in rows[4]
    assert "_+11.0_" in rows[4]  # of a metric where less is better
    assert "| sigmoid | 2 | 1 / 1 of 2 |" in summary_table({"net/30": found})


def test_a_subset_is_numbered_anew():
    place = Place(Path("x"))
    samples = [Sample(f"{i}", Path(f"{i}"), place, i % 6) for i in range(12)]
    data = Dataset("six", Path("x"), "folders", tuple("abcdef"), samples)
    part = subset(data, 3)
    assert len(part) == 6
    assert part.num_classes == 3
    for sample in part.samples:
        own = samples[int(sample.name)]
        assert part.classes[sample.label] == "abcdef"[own.label]
