"""A branch without labels: the targets are the classifier's own predictions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import DataError, TrainingError, UsageError
from sigcam.train.distributed import World
from sigcam.train.loop import fit_sigmoid_head, fit_softmax_head
from sigcam.train.predicted import PredictedSamples, Teacher
from sigcam.train.samples import Samples
from sigcam.train.settings import Reading, TrainSettings

QUICK = TrainSettings(
    learning_rate=0.05, weight_decay=5e-4, epochs=4, batch_size=16, device="cpu",
    labels="predicted", cache_dtype="float32", init="default"
)  # fmt: skip
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def classifier(make_dual, views, tmp_path):
    """Makes toys whose softmax branch tells the four colours apart, mostly."""

    def make(**options):
        dual = make_dual(**options)
        settings = replace(QUICK, labels="given", epochs=6)
        fit_softmax_head(
            dual, views, settings, reading=Reading(tmp_path / "cache", workers=2), progress=False
        )
        return dual

    return make


@pytest.fixture
def train(views, tmp_path):
    def run(dual, settings=QUICK, *, given=views, **options):
        reading = Reading(cache_dir=tmp_path / "cache", workers=2)
        return fit_sigmoid_head(
            dual, given, settings, **{"reading": reading, "progress": False, **options}
        )

    return run


@pytest.fixture
def unlabelled(views):
    samples = [replace(one, label=None) for one in views.dataset.samples]
    return replace(views, dataset=replace(views.dataset, samples=samples, classes=None))


def head(dual) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in dual.sigmoid_head.named_tensors().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    for name in a:
        assert torch.equal(a[name], b[name]), name


def values(tensors: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    return tensors["fc.weight"].double().numpy(), tensors["fc.bias"].double().numpy()


def cached_features(result) -> np.ndarray:
    features = np.load(result.cache_folder / "features.npy").astype(np.float64)
    return features.reshape(len(features) * features.shape[1], -1)


def predictions(dual, features: np.ndarray, temperature: float | None) -> np.ndarray:
    """y [samples, C] by the definition."""
    weight, bias = values(dual.softmax_head.named_tensors())
    logits = features @ weight.T + bias
    if temperature is None:
        return np.eye(4)[logits.argmax(1)]
    e = np.exp(logits / temperature)
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [None, 0.5, 3.0])
def test_the_loss_of_the_first_epoch_is_the_definition(
    train, classifier, unlabelled, temperature
) -> None:
    dual = classifier()
    weight, bias = values(head(dual))
    settings = replace(QUICK, temperature=temperature, epochs=1, batch_size=10**6)
    result = train(dual, settings, given=unlabelled)
    features = cached_features(result)
    z, y = features @ weight.T + bias, predictions(dual, features, temperature)
    assert len(set(y.argmax(1))) > 1
    s = 1 / (1 + np.exp(-z))
    want = -(3 * y * np.log(s) + (1 - y) * np.log(1 - s)).mean()
    assert result.history[0].loss == pytest.approx(want, rel=1e-5)
    assert result.history[0].top1 == pytest.approx((z.argmax(1) == y.argmax(1)).mean())


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("temperature", [None, 2.0])
def test_the_branch_learns_to_agree_with_the_classifier(
    train, classifier, unlabelled, cached, temperature
) -> None:
    dual = classifier()
    before = {k: v.clone() for k, v in dual.classifier_tensors().items()}
    settings = replace(QUICK, epochs=12, cached=cached, temperature=temperature, val_fraction=0.25)
    result = train(dual, settings, given=unlabelled)
    assert result.history[-1].top1 > 0.9
    assert result.history[-1].val_top1 > 0.8
    assert result.history[-1].loss < result.history[0].loss
    assert result.images == 30
    assert_same(before, dual.classifier_tensors())
    assert not any(p.requires_grad for p in dual.softmax_head.parameters())
    assert all(p.requires_grad for p in dual.sigmoid_head.parameters())


def test_labels_that_exist_are_ignored(train, classifier, views, unlabelled) -> None:
    samples = [replace(one, label=900 - one.label) for one in views.dataset.samples]
    wrong = replace(views, dataset=replace(views.dataset, samples=samples, classes=("a", "b")))
    first, second = classifier(), classifier()
    train(first, given=unlabelled)
    train(second, given=wrong, class_names=("cat", "dog", "hen", "cow"))
    assert_same(head(first), head(second))


@pytest.mark.parametrize("init", ["default", "softmax"])
def test_lbfgs_reaches_the_minimum_of_soft_targets(train, classifier, unlabelled, init) -> None:
    dual = classifier()
    start = [np.zeros(shape) for shape in ((4, 12), 4)]
    if init == "softmax":
        start = [one - one.mean(0) for one in values(dual.softmax_head.named_tensors())]
    settings = TrainSettings(
        "lbfgs", epochs=60, weight_decay=1e-3, device="cpu", labels="predicted", temperature=2.0,
        cache_dtype="float32", init=init,
    )  # fmt: skip
    result = train(dual, settings, given=unlabelled)
    features = cached_features(result)
    weight, bias = values(head(dual))
    y = predictions(dual, features, 2.0)
    s = 1 / (1 + np.exp(-(features @ weight.T + bias)))
    of_logits = ((1 - y) * s - 3 * y * (1 - s)) / y.size
    gradient = of_logits.T @ features + 1e-3 * (weight - start[0])
    assert np.abs(gradient).max() < 1e-4
    assert np.abs(of_logits.sum(0) + 1e-3 * (bias - start[1])).max() < 1e-4


def test_hard_targets_by_lbfgs(train, classifier, unlabelled) -> None:
    settings = TrainSettings("lbfgs", epochs=20, device="cpu", labels="predicted")
    result = train(classifier(), settings, given=unlabelled)
    assert result.history[-1].top1 > 0.9


@pytest.mark.parametrize("cached", [True, False])
def test_resumed_epochs_equal_an_uninterrupted_run(train, classifier, tmp_path, cached) -> None:
    settings = replace(QUICK, cached=cached, val_fraction=0.2, temperature=2.0)
    straight, first, second = (classifier(dropout=0.3) for _ in range(3))
    train(straight, settings)
    train(first, replace(settings, epochs=2), run_dir=tmp_path / "run")
    train(second, settings, run_dir=tmp_path / "run", resume=True)
    assert_same(head(straight), head(second))


def test_a_resumed_run_has_the_same_targets(train, classifier, tmp_path) -> None:
    dual, run = classifier(), tmp_path / "run"
    train(dual, run_dir=run)
    with pytest.raises(TrainingError, match=r"temperature: None before, 2\.0 now"):
        train(dual, replace(QUICK, temperature=2.0), run_dir=run, resume=True)
    with pytest.raises(TrainingError, match="labels: 'predicted' before, 'given' now"):
        train(dual, replace(QUICK, labels="given"), run_dir=run, resume=True)
    with torch.no_grad():
        dual.softmax_head.named_tensors()["fc.bias"].add_(1e-3)
    with pytest.raises(TrainingError, match="labels_sha256"):
        train(dual, run_dir=run, resume=True)


@pytest.mark.parametrize("names", [(), ("cat", "dog", "hen", "cow")])
@pytest.mark.parametrize("cached", [True, False])
def test_one_class_for_all_images_is_refused(
    train, classifier, unlabelled, tmp_path, cached, names
) -> None:
    dual, told = classifier(), []
    with torch.no_grad():
        dual.softmax_head.named_tensors()["fc.bias"][2] = 1e4
    before = head(dual)
    words = r"class 2 \(hen\) for all 40 images" if names else "class 2 for all 40 images"
    with pytest.raises(DataError, match=f"{words}.* mean and std"):
        train(
            dual, replace(QUICK, cached=cached), given=unlabelled, class_names=names,
            run_dir=tmp_path / "run", on_epoch=told.append,
        )  # fmt: skip
    assert not told
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    if cached:
        assert_same(before, head(dual))  # found out before any step


def test_a_new_softmax_head_needs_labels(views, toy) -> None:
    with pytest.raises(UsageError, match="its own predictions; give labels"):
        fit_softmax_head(toy, views, replace(QUICK, init="default"))


def test_no_images(train, classifier, views) -> None:
    with pytest.raises(DataError, match="has no images"):
        train(classifier(), given=replace(views, dataset=replace(views.dataset, samples=[])))


def test_the_teacher_predicts_behind_a_neck_that_ends_before_a_dropout() -> None:
    torch.manual_seed(0)
    layers = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5), nn.Flatten(), nn.Linear(6, 5)
    dual = DualBranch(nn.Sequential(nn.Conv2d(3, 6, 3), *layers), input_size=8)
    assert dual.sigmoid_head.neck_shape != dual.softmax_head.neck_shape
    dual.train()
    features = dual.features(torch.randn(7, 3, 8, 8))
    logits = dual.softmax_head(features)
    x = dual.sigmoid_head.neck(features)
    assert torch.equal(Teacher(dual)(x), logits.argmax(1))
    for temperature in (0.5, 4.0):
        torch.testing.assert_close(Teacher(dual, temperature)(x), (logits / temperature).softmax(1))
    tiny = Teacher(dual, 1e-40)(x)
    torch.testing.assert_close(tiny, torch.eye(5)[logits.argmax(1)])
    assert not any(p.requires_grad for p in Teacher(dual)._classifier.parameters())
    assert Teacher(dual)(x[:0]).shape == (0,)
    assert Teacher(dual, 1.0)(x[:0]).shape == (0, 5)


class Fixed(Samples):
    """Samples whose x is their predicted class."""

    def __init__(self, classes: list[int]) -> None:
        self.size, self.failed = len(classes), {}
        self.classes = np.array(classes)

    def batches(self, wanted, epoch):
        for numbers in wanted:
            yield torch.tensor(self.classes[numbers]), torch.full((len(numbers),), -1)


class Echo(Teacher):
    """A teacher of three classes that says the class that stands in x."""

    def __init__(self) -> None:
        self.num_classes, self.task, self._names = 3, "single-label", ()

    def __call__(self, x):
        return x


def test_what_is_left_of_an_epoch_may_be_of_one_class() -> None:
    samples = PredictedSamples(Fixed([0, 1, 1]), Echo(), ALONE, watched=True)
    assert len(list(samples.batches([np.array([1, 2])], 0))) == 1
    assert len(list(samples.batches([np.array([1, 2]), np.array([0])], 0))) == 2
    same = PredictedSamples(Fixed([1, 1, 1]), Echo(), ALONE, watched=True)
    assert len(list(same.batches([np.array([1, 2])], 0))) == 1
    with pytest.raises(DataError, match="class 1 for all 3 images"):
        list(same.batches([np.array([1, 2]), np.array([0])], 0))
    held = PredictedSamples(Fixed([1, 1, 1]), Echo(), ALONE)
    assert len(list(held.batches([np.arange(3)], 0))) == 1


def test_several_processes_count_together() -> None:
    class Two(World):
        def total(self, values):
            return [a + b for a, b in zip(values, self.others, strict=True)]

    def world(rank, others):
        made = Two(rank, 2, torch.device("cpu"))
        object.__setattr__(made, "others", others)
        return made

    # Two samples of each of five images; the plain views 0, 4 and 8 belong to rank 0.
    samples = Fixed([1, 0, 2, 0, 1, 0, 2, 0, 1, 0])
    PredictedSamples(samples, Echo(), world(0, [0, 0, 2, 2, 2])).check_plain(2)
    PredictedSamples(samples, Echo(), world(1, [0, 3, 0, 3, 3])).check_plain(2)
    with pytest.raises(DataError, match="class 1 for all 5 images"):
        PredictedSamples(samples, Echo(), world(0, [0, 2, 0, 2, 2])).check_plain(2)
    # Live: rank 0's share is of one class, the other's isn't; then both are of one.
    half = [np.array([0, 4]), np.array([8])]
    watched = PredictedSamples(samples, Echo(), world(0, [1, 6, 0, 7, 7]), watched=True)
    assert len(list(watched.batches(half, 0))) == 2
    same = PredictedSamples(samples, Echo(), world(0, [0, 7, 0, 7, 7]), watched=True)
    with pytest.raises(DataError, match="class 1 for all 10 images"):
        list(same.batches(half, 0))


def test_the_branch_starts_from_the_softmax_branch_unless_it_is_said_otherwise(
    classifier, train
) -> None:
    still = replace(QUICK, learning_rate=1e-12, weight_decay=0.0, epochs=1)
    found = {}
    for init in (None, "softmax", "default"):
        dual = classifier()
        train(dual, replace(still, init=init))
        found[init] = head(dual)
    assert_same(found[None], found["softmax"])
    assert (found["default"]["fc.weight"] - found[None]["fc.weight"]).abs().max() > 1e-3
