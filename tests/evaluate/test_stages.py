"""The faithfulness metrics in a run: their numbers, what overlaps, what is held, how it ends."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import weakref
from contextlib import closing

import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.core.threads import Stopwatch
from sigcam.data import open_dataset
from sigcam.evaluate import EvaluateOptions, evaluate_artifacts, run, stages
from sigcam.evaluate.faithfulness import imputation
from sigcam.evaluate.faithfulness.confidence import masked_image
from sigcam.evaluate.faithfulness.insertion_deletion import (
    curve_area,
    deletion_curve,
    insertion_curve,
)
from sigcam.evaluate.faithfulness.measure import change_image, measure_faithfulness
from sigcam.evaluate.faithfulness.road import road_curve, road_score
from sigcam.evaluate.localization.protocol import enlarge, normalise
from sigcam.evaluate.model import EvaluatedModel
from sigcam.images.preprocess import read_input
from sigcam.runtime.backends.base import BackendOptions

pytest.importorskip("onnxruntime")
ALL = ("confidence", "insertion", "deletion", "road")
BATCH = 5


def options(**changes):
    given = {"backend": "ort", "batch_size": BATCH, "workers": 2, "steps": 8, "faithfulness": ALL}
    return EvaluateOptions(**{**given, **changes})


def opened(path):
    return EvaluatedModel(path.name, path, "ort", BackendOptions(), Stopwatch())


def direct(model, samples):
    """Fields of a batch's records, by the functions that make and score images in one go."""
    images = [read_input(one.path, model.raw_preprocessing).tensor for one in samples]
    predictions = model.predict(images, [one.label for one in samples])
    classes = [one.class_id for one in predictions]
    heatmaps = [normalise(enlarge(one.predicted_cam, 56, 56)) for one in predictions]
    masked = [masked_image(*pair) for pair in zip(images, heatmaps, strict=True)]
    found = []
    for image, scores, class_id, after in zip(
        images, heatmaps, classes, model.probabilities(masked, classes), strict=True
    ):

        def score(batch, class_id=class_id):
            return model.probabilities(list(batch), [class_id] * len(batch))

        morf, lerf = (
            road_curve(image, scores, score, most_relevant_first=first) for first in (True, False)
        )
        found.append({
            "after": after,
            "insertion": curve_area(insertion_curve(image, scores, score, steps=8)),
            "deletion": curve_area(deletion_curve(image, scores, score, steps=8)),
            "road": road_score(morf, lerf),
        })  # fmt: skip
    return found


@pytest.mark.slow
def test_numbers_are_to_the_bit_those_of_the_direct_functions(artifact, squares, tmp_path):
    """Also around an image that can't be decoded, which makes its batch smaller."""
    data = tmp_path / "data"
    shutil.copytree(squares, data)
    file = data / "images" / "6.png"
    content = file.read_bytes()
    file.write_bytes(content[:60] + bytes(len(content) - 60))
    dataset = open_dataset(data)
    paths = [artifact(), artifact(mode="top1", rule="crop")]
    found = evaluate_artifacts(paths, dataset, tmp_path / "out", options(skip_bad=True))
    for path, records in zip(paths, found.records, strict=True):
        with opened(path) as model:
            for start in range(0, len(dataset), BATCH):
                places = [i for i in range(start, min(start + BATCH, len(dataset))) if i != 6]
                want = direct(model, [dataset.samples[i] for i in places])
                for place, fields in zip(places, want, strict=True):
                    for name, value in fields.items():
                        assert records[name][place] == records[name].dtype.type(value), name
        assert np.isnan(records["road"][6])
        assert np.isfinite(np.delete(records["road"], 6)).all()


def test_images_are_changed_in_threads_while_the_backend_runs(
    artifact, squares, tmp_path, monkeypatch
):
    """The first batch is measured only once an image of the second one is changed."""
    changing, threads, measured_in = threading.Event(), set(), set()
    count, lock = 0, threading.Lock()

    def change(*arguments):
        nonlocal count
        with lock:
            count += 1
            if count > BATCH:
                changing.set()
        threads.add(threading.current_thread().name)
        return change_image(*arguments)

    def measure(*arguments):
        assert changing.wait(10)
        measured_in.add(threading.current_thread())
        return measure_faithfulness(*arguments)

    monkeypatch.setattr(stages, "change_image", change)
    monkeypatch.setattr(stages, "measure_faithfulness", measure)
    evaluate_artifacts(
        [artifact()], open_dataset(squares), tmp_path, options(faithfulness=("road",))
    )
    assert count == 12
    assert all(name.startswith("sigcam-change") for name in threads)
    assert measured_in == {threading.current_thread()}


@pytest.mark.slow
def test_changed_images_of_a_few_batches_are_held(artifact, squares, monkeypatch):
    """However many images come: two batches, and one for each thread that changes them."""
    alive, most = [], 0
    lock = threading.Lock()

    def change(*arguments):
        nonlocal most
        changed = change_image(*arguments)
        with lock:
            alive.append(weakref.ref(changed))
            most = max(most, sum(one() is not None for one in alive))
        return changed

    monkeypatch.setattr(stages, "change_image", change)
    given = options(faithfulness=("confidence",), batch_size=3, workers=1)
    samples = open_dataset(squares).samples * 10
    with opened(artifact()) as one, opened(artifact(mode="top1")) as other:
        models = [one, other]
        with closing(run._scored(models, samples, given)) as scored:
            assert sum(1 for _ in scored) == len(samples)
    assert len(alive) == len(samples) * len(models)
    assert len(models) * 3 < most <= len(models) * 2 * (3 + 1)


def running():
    return [one.name for one in threading.enumerate() if one.name.startswith("sigcam-")]


def test_an_error_in_a_thread_that_changes_images(artifact, squares, tmp_path, monkeypatch):
    monkeypatch.setattr(imputation, "_STEPS", 1)
    dataset = open_dataset(squares)
    with pytest.raises(UsageError, match="didn't reach"):
        evaluate_artifacts([artifact()], dataset, tmp_path, options())
    assert running() == []


@pytest.mark.parametrize("stage", ["change_image", "measure_faithfulness", "score_image"])
def test_an_interruption_ends_all_threads(artifact, squares, tmp_path, monkeypatch, stage):
    calls = []

    def stops(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return function(*arguments)

    function = getattr(stages, stage)
    path, dataset = artifact(), open_dataset(squares)
    given = options(faithfulness=("confidence",))
    with monkeypatch.context() as patched:
        patched.setattr(stages, stage, stops)
        with pytest.raises(KeyboardInterrupt):
            evaluate_artifacts([path], dataset, tmp_path / "parts", given)
    assert running() == []
    found = evaluate_artifacts([path], dataset, tmp_path / "parts", given)
    want = evaluate_artifacts(
        [path], dataset, tmp_path / "whole", dataclasses.replace(given, workers=1)
    )
    assert found.records[0].tobytes() == want.records[0].tobytes()
