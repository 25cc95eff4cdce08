"""Training for several classes an image, and for one logit, against definitions in NumPy."""

from __future__ import annotations

import csv
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import DataError, UsageError
from sigcam.core.spec import Preprocessing
from sigcam.data import open_dataset, open_images
from sigcam.train.accuracy import MeanAveragePrecision, Top1
from sigcam.train.augment import Augmentation
from sigcam.train.loop import fit_sigmoid_head, fit_softmax_head
from sigcam.train.loss import default_positive_weight, evidence_loss, one_logit_loss
from sigcam.train.predicted import Teacher
from sigcam.train.settings import Reading, TrainSettings
from sigcam.train.views import TrainingViews
from tests.support.toy import SIZE, toy_model

EXACT = TrainSettings(
    optimizer="lbfgs", epochs=30, weight_decay=0.01, device="cpu", cache_dtype="float32"
)
COLOURS = np.array([(220, 30, 30), (30, 220, 30), (30, 30, 220)])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(0, 1000), st.sampled_from([None, 1.0, 0.3, 6.5]))
def test_the_loss_of_one_logit_is_binary_cross_entropy(batch, seed, weight):
    random = np.random.default_rng(seed)
    logit = torch.from_numpy(random.normal(0, 4, (batch, 1))).requires_grad_()
    both = torch.cat([-logit, logit], 1)
    ids = torch.from_numpy(random.integers(0, 2, batch))
    soft = torch.from_numpy(random.random((batch, 1)))
    for given_, y in (
        (ids, ids.double().unsqueeze(1)),
        (torch.cat([1 - soft, soft], 1), soft),
    ):
        got = one_logit_loss(both, given_, weight)
        want = functional.binary_cross_entropy_with_logits(
            logit,
            y,
            pos_weight=None if weight is None else torch.tensor(weight, dtype=torch.float64),
        )
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        [one] = torch.autograd.grad(got, logit, retain_graph=True)
        [other] = torch.autograd.grad(want, logit, retain_graph=True)
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    if weight in (None, 1.0):  # targets for both columns give the same
        columns = evidence_loss(both, functional.one_hot(ids, 2).double(), 1.0)
        torch.testing.assert_close(one_logit_loss(both, ids), columns, rtol=1e-12, atol=1e-12)


def test_one_logit_needs_two_columns_of_targets():
    with pytest.raises(UsageError, match=r"0\.\.1, got 2"):
        one_logit_loss(torch.zeros(1, 2), torch.tensor([2]))
    with pytest.raises(UsageError, match="targets must be"):
        one_logit_loss(torch.zeros(1, 2), torch.zeros(1, 1))


def test_the_positive_weight_of_several_classes():
    assert default_positive_weight(20) == 19
    assert default_positive_weight(20, 2.0) == 9
    assert default_positive_weight(4, 3.0) == pytest.approx(1 / 3)
    assert default_positive_weight(1) == 1
    for mean in (0.0, 20.0):
        with pytest.raises(UsageError, match="some of the 20 classes"):
            default_positive_weight(20, mean)


def average_precision(scores, positive):
    """By its definition: at each threshold, precision times the recall gained."""
    found, last = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        taken = scores >= threshold
        recall = (taken & positive).sum() / positive.sum()
        found += (taken & positive).sum() / taken.sum() * (recall - last)
        last = recall
    return found


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 40), st.integers(1, 5), st.integers(0, 999))
def test_mean_average_precision_is_that_of_rounded_logits(count, classes, seed):
    random = np.random.default_rng(seed)
    logits = random.normal(0, 8, (count, classes)).astype(np.float32)
    positive = random.random((count, classes)) < 0.4
    measure = MeanAveragePrecision(classes)
    counts = torch.zeros(measure.size, dtype=torch.float64)
    for part in np.array_split(np.arange(count), 3):  # added up over batches
        measure.add(counts, torch.from_numpy(logits[part]), torch.from_numpy(positive[part]) * 1.0)
    rounded = np.round(logits.astype(np.float64).clip(-20, 20), 1)
    each = [
        average_precision(rounded[:, c], positive[:, c])
        for c in range(classes)
        if positive[:, c].any()
    ]
    got = measure.figure(counts, count)
    assert got == pytest.approx(np.mean(each), abs=1e-9) if each else np.isnan(got)


def test_top1_of_two_columns_is_the_sign_of_the_logit():
    counts = torch.zeros(1, dtype=torch.float64)
    logit = torch.tensor([[0.3], [-2.0], [1.0]])
    Top1().add(counts, torch.cat([-logit, logit], 1), torch.tensor([1, 0, 0]))
    assert Top1().figure(counts, 3) == pytest.approx(2 / 3)


@pytest.fixture
def several(tmp_path):
    """36 images of stripes in any of three colours, listed with all of them."""
    random = np.random.default_rng(6)
    lines = ["image,label"]
    for index in range(36):
        colours = np.flatnonzero(random.random(3) < 0.45)
        image = random.integers(0, 50, (20, 20, 3))
        for place, colour in enumerate(colours):
            image[:, 6 * place : 6 * place + 6] += COLOURS[colour] * 3 // 4
        assert cv2.imwrite(str(tmp_path / f"{index}.png"), image.astype(np.uint8)[..., ::-1])
        lines.append(f"{index}.png," + "|".join("rgb"[c] for c in colours))
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def views_of(dataset):
    return TrainingViews(dataset, Preprocessing(SIZE, SIZE, "stretch"), Augmentation(views=2))


def fit(dual, views, tmp_path, settings=EXACT, function=fit_sigmoid_head, **options):
    reading = Reading(cache_dir=tmp_path / "cache", workers=2)
    return function(dual, views, settings, reading=reading, progress=False, **options)


def pooled(dual, views):
    """The neck's outputs of all views, [N, D]."""
    plain = views.preprocessing
    rows = []
    for image in range(len(views)):
        pixels = views.pixels(image, range(views.augmentation.views))
        x = (pixels.transpose(0, 3, 1, 2) / 255 - np.array(plain.mean)[:, None, None]) / np.array(
            plain.std
        )[:, None, None]
        with torch.no_grad():
            rows.append(dual.sigmoid_head.neck(dual.features(torch.from_numpy(x).float())))
    return torch.cat(rows).double().numpy()


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def residual(W, b, X, Y, weight, decay):
    """Largest entry of the gradient of mean loss + decay / 2 |theta|^2."""
    Z = X @ W.T + b
    G = (-weight * Y * sigmoid(-Z) + (1 - Y) * sigmoid(Z)) / Z.size
    return max(np.abs(G.T @ X + decay * W).max(), np.abs(G.sum(0) + decay * b).max())


def values(dual):
    tensors = dual.sigmoid_head.named_tensors()
    return tensors["fc.weight"].double().numpy(), tensors["fc.bias"].double().numpy()


def test_several_classes_reach_the_minimum_of_their_loss(several, tmp_path):
    data = open_dataset(several, multi_label=True)
    Y = np.zeros((36, 3))
    for row, labels in zip(Y, data.label_sets, strict=True):
        row[[("b", "g", "r").index(data.classes[c]) for c in labels]] = 1
    dual = DualBranch(toy_model(3), input_size=SIZE, task="multi-label")
    views = views_of(data)
    result = fit(dual, views, tmp_path, class_names=("b", "g", "r"))
    weight = (3 - Y.sum(1).mean()) / Y.sum(1).mean()
    assert result.positive_weight == pytest.approx(weight)
    X = pooled(dual, views)
    start = np.abs(X).max()
    assert residual(*values(dual), X, np.repeat(Y, 2, 0), weight, 0.01) < 1e-4 * start
    last = result.history[-1]
    assert last.top1 is None
    assert 0.5 < last.mean_average_precision <= 1
    assert last.accuracy == (last.mean_average_precision, None)


def test_metrics_name_the_measure(several, tmp_path):
    dual = DualBranch(toy_model(3), input_size=SIZE, task="multi-label")
    run = tmp_path / "run"
    settings = replace(EXACT, optimizer="adam", learning_rate=0.05, epochs=2, val_fraction=0.25)
    views = views_of(open_dataset(several, multi_label=True))
    whole = fit(dual, views, tmp_path, settings, run_dir=run)
    header, *rows = csv.reader((run / "metrics.csv").read_text().splitlines())
    assert "top1" not in header
    assert {"mean_average_precision", "val_mean_average_precision"} <= set(header)
    assert len(rows) == 2
    again = DualBranch(toy_model(3), input_size=SIZE, task="multi-label")
    fit(again, views, tmp_path, replace(settings, epochs=1), run_dir=run)
    resumed = fit(again, views, tmp_path, settings, run_dir=run, resume=True)
    assert again.branch_sha256() == dual.branch_sha256()
    got, want = resumed.history[-1], whole.history[-1]
    assert (got.mean_average_precision, got.val_mean_average_precision) == (
        want.mean_average_precision,
        want.val_mean_average_precision,
    )


def test_live_views_train_the_same_targets(several, tmp_path):
    dual = DualBranch(toy_model(3), input_size=SIZE, task="multi-label")
    settings = replace(EXACT, optimizer="adam", cached=False, epochs=3, learning_rate=0.05)
    result = fit(dual, views_of(open_dataset(several, multi_label=True)), tmp_path, settings)
    assert result.history[-1].loss < result.history[0].loss


def test_a_single_label_model_refuses_several_classes(several, tmp_path):
    dual = DualBranch(toy_model(3), input_size=SIZE)
    with pytest.raises(DataError, match=r"list\.csv, line"):
        fit(dual, views_of(open_dataset(several, multi_label=True)), tmp_path)


@pytest.fixture
def pairs(folder):
    """Two of the toy's four class folders."""
    for name in ("class2", "class3"):
        for file in (folder / name).iterdir():
            file.unlink()
        (folder / name).rmdir()
    return open_dataset(folder)


@pytest.mark.parametrize("weight", [None, 3.0])
def test_one_logit_reaches_the_minimum_of_its_loss(pairs, tmp_path, weight):
    dual = DualBranch(toy_model(1), input_size=SIZE)
    views = views_of(pairs)
    result = fit(dual, views, tmp_path, replace(EXACT, positive_weight=weight))
    W, b = values(dual)
    assert (W.shape, b.shape) == ((1, 12), (1,))
    assert result.positive_weight == (weight or 1.0)
    X = pooled(dual, views)
    Y = np.repeat(pairs.labels, 2)[:, None].astype(float)
    assert residual(W, b, X, Y, weight or 1.0, 0.01) < 1e-4 * np.abs(X).max()
    assert result.history[-1].top1 > 0.9


def test_the_weight_decay_of_one_logit_is_that_of_one_class(pairs, tmp_path):
    dual = DualBranch(toy_model(1), input_size=SIZE)
    assert fit(dual, views_of(pairs), tmp_path, replace(EXACT, weight_decay=None)).weight_decay == (
        pytest.approx(0.15)
    )


def trained(num_logits, views, tmp_path, task=None):
    """A toy whose own head was trained for its task."""
    dual = DualBranch(toy_model(num_logits), input_size=SIZE, task=task)
    adam = replace(EXACT, optimizer="adam", learning_rate=0.05, epochs=8)
    result = fit(dual, views, tmp_path, adam, fit_softmax_head)
    assert result.positive_weight is None
    return dual, result


def test_the_classifiers_own_head_is_trained_for_its_task(several, pairs, tmp_path):
    _, result = trained(
        3, views_of(open_dataset(several, multi_label=True)), tmp_path, "multi-label"
    )
    assert result.history[-1].mean_average_precision > 0.6
    dual, result = trained(1, views_of(pairs), tmp_path)
    assert result.history[-1].top1 > 0.9
    assert dual.softmax_head.named_tensors()["fc.weight"].shape == (1, 12)


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_predictions_of_several_classes_are_sigmoids(several, tmp_path, temperature):
    views = views_of(open_dataset(several, multi_label=True))
    dual, _ = trained(3, views, tmp_path, "multi-label")
    x = torch.rand(6, 12)
    logits = dual.softmax_head.classifier(x)
    got = Teacher(dual, temperature)(x)
    want = (logits >= 0).float() if temperature is None else torch.sigmoid(logits / temperature)
    torch.testing.assert_close(got, want)
    assert Teacher(dual, temperature)(x[:0]).shape == (0, 3)
    settings = replace(EXACT, labels="predicted", temperature=temperature)
    result = fit(dual, views_of(open_images(several)), tmp_path, settings)
    X = pooled(dual, views)
    Z = X @ dual.softmax_head.named_tensors()["fc.weight"].double().numpy().T
    Z = Z + dual.softmax_head.named_tensors()["fc.bias"].double().numpy()
    Y = (Z >= 0) * 1.0 if temperature is None else sigmoid(Z / temperature)
    mean = Y[::2].sum(1).mean()  # of the plain views
    assert result.positive_weight == pytest.approx((3 - mean) / mean, rel=1e-4)
    # The start is the classifier itself, not centred: a sigmoid notices a shift.
    start = dual.softmax_head.named_tensors()
    W, b = values(dual)
    G = -result.positive_weight * Y * sigmoid(-(X @ W.T + b)) + (1 - Y) * sigmoid(X @ W.T + b)
    moved = W - start["fc.weight"].double().numpy()
    assert np.abs(G.T @ X / G.size + 0.01 * moved).max() < 1e-4 * np.abs(X).max()


def test_predictions_of_one_logit(pairs, tmp_path):
    views = views_of(pairs)
    dual, _ = trained(1, views, tmp_path)
    x = torch.rand(6, 12)
    logits = dual.softmax_head.classifier(x)
    assert torch.equal(Teacher(dual)(x), (logits[:, 1] > 0).long())
    torch.testing.assert_close(Teacher(dual, 3.0)(x), torch.sigmoid(logits / 3))
    settings = replace(EXACT, labels="predicted")
    result = fit(dual, views, tmp_path, settings)
    assert result.history[-1].top1 > 0.9
    W, _ = values(dual)
    assert np.abs(W).sum() > 0


def test_predictions_that_are_all_the_same_are_refused(several, tmp_path):
    dual = DualBranch(toy_model(3), input_size=SIZE, task="multi-label")
    with torch.no_grad():
        dual.softmax_head.classifier.get_parameter("fc.weight").zero_()
        dual.softmax_head.classifier.get_parameter("fc.bias").copy_(torch.tensor([1.0, -1, 1]))
    views = views_of(open_images(several))
    settings = replace(EXACT, labels="predicted")
    with pytest.raises(DataError, match=r"predicts class 0, 2 \(b, r\) for all 36 images"):
        fit(dual, views, tmp_path, settings, class_names=("b", "g", "r"))
    with torch.no_grad():
        dual.softmax_head.classifier.get_parameter("fc.bias").fill_(-1)
    with pytest.raises(DataError, match="predicts no class for all 36 images"):
        fit(dual, views, tmp_path, settings)


def test_live_predictions_of_several_classes_need_a_weight(several, tmp_path):
    views = views_of(open_images(several))
    dual, _ = trained(3, views_of(open_dataset(several, multi_label=True)), tmp_path, "multi-label")
    settings = replace(EXACT, optimizer="adam", labels="predicted", cached=False, epochs=1)
    with pytest.raises(UsageError, match="give a positive weight, or use cached features"):
        fit(dual, views, tmp_path, settings)
    assert fit(dual, views, tmp_path, replace(settings, positive_weight=2.0)).positive_weight == 2
