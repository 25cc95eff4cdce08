from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import (
    DataError,
    ModelError,
    StorageError,
    UsageError,
)
from sigcam.core.spec import Preprocessing
from sigcam.images.decode import Encoded, read_image
from sigcam.images.preprocess import prepare, read_input
from sigcam.train import feature_cache as cache_folder
from sigcam.train.augment import Augmentation
from sigcam.train.distributed import World
from sigcam.train.feature_cache import (
    build_cache,
    default_cache_dir,
    describe,
    key_of,
)
from sigcam.train.views import FeatureRunner, Job, TrainingViews, ViewReader

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_folder, "CHUNK", 7)


def build(dual, views, where, **options):
    options = {"features_by": "torch", **options}  # no run but those that fill it
    return build_cache(dual, views, ALONE, cache_dir=where, progress=False, **options)


def count_runs(monkeypatch: pytest.MonkeyPatch, fail_at: int = -1) -> list[int]:
    """Counts calls of the backbone; the one numbered `fail_at` is interrupted."""
    calls: list[int] = []
    original = FeatureRunner.__call__

    def counted(self, pixels):
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        calls.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(FeatureRunner, "__call__", counted)
    return calls


def test_rows_are_the_stem_of_the_views(toy, views, tmp_path) -> None:
    cache = build(toy, views, tmp_path / "c", dtype="float32")
    assert cache.features.shape == (40, 3, 12)
    assert cache.features.dtype == np.float32
    assert not cache.failed
    preprocessing = views.preprocessing
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    for index, view in ((0, 0), (17, 2), (39, 1)):
        whole = read_image(views.dataset.samples[index].path)
        pixels = views.augmentation.view(whole, preprocessing, index, view)
        image = ((pixels / 255 - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
        with torch.no_grad():
            want = toy.features(torch.from_numpy(image)).mean((2, 3))[0]
        np.testing.assert_allclose(cache.features[index, view], want, rtol=1e-4, atol=1e-5)


def test_view_0_is_the_preparation_in_use(views) -> None:
    image = read_image(views.dataset.samples[0].path)
    expected = prepare(image, views.preprocessing)[0]
    np.testing.assert_array_equal(
        views.augmentation.view(image, views.preprocessing, 0, 0), expected
    )
    np.testing.assert_array_equal(views.pixels(0, (0,))[0], expected)


@pytest.mark.parametrize("wanted", [(0,), (0, 2), (1,)])
def test_view_0_of_a_large_jpeg_is_read_as_in_use(views, monkeypatch, wanted) -> None:
    file, preprocessing = views.dataset.samples[0].path, views.preprocessing
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    file.write_bytes(cv2.imencode(".jpg", cv2.resize(noise, (400, 320)))[1].tobytes())
    image = read_image(file)
    in_use = read_input(file, preprocessing).tensor
    assert not np.array_equal(in_use, prepare(image, preprocessing)[0])
    whole = Encoded.decode
    calls = []
    counted = lambda self, *pixels: (calls.append(1), whole(self, *pixels))[1]  # noqa: E731
    monkeypatch.setattr(Encoded, "decode", counted)
    floats = replace(views, preprocessing=replace(preprocessing, layout="float32_nchw"))
    with ViewReader(floats, workers=1) as reader:
        [made] = reader.read([Job(0, wanted)])
    assert made.pixels is not None
    for view, pixels in zip(wanted, made.pixels, strict=True):
        expected = in_use if view == 0 else views.augmentation.view(image, preprocessing, 0, view)
        np.testing.assert_array_equal(pixels, expected)
    assert len(calls) == (wanted != (0,))


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 99), st.integers(1, 99))
def test_views_are_right_and_repeatable(height: int, width: int, index: int, view: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    preprocessing = Preprocessing(9, 12, "stretch")
    made = Augmentation(seed=4).view(image, preprocessing, index, view)
    assert (made.shape, made.dtype, made.flags.c_contiguous) == ((9, 12, 3), np.uint8, True)
    np.testing.assert_array_equal(
        made, Augmentation(seed=4).view(image, preprocessing, index, view)
    )
    plain = Augmentation(seed=4, flip=False).view(image, preprocessing, index, view)
    assert np.array_equal(made, plain) or np.array_equal(made, plain[:, ::-1])


def test_crops_keep_the_share_that_was_asked_for() -> None:
    rng = np.random.default_rng(1)
    rectangles = [Augmentation()._rectangle(rng, 300, 400) for _ in range(200)]
    shares = [h * w / (300 * 400) for _, _, h, w in rectangles]
    assert 0.34 < min(shares) < 0.45
    assert 0.75 < max(shares) < 1.01
    assert all(t + h <= 300 and le + w <= 400 for t, le, h, w in rectangles)


@pytest.mark.parametrize(
    "wrong", [{"views": 0}, {"crop_scale": (0.5, 0.4)}, {"crop_scale": (0, 1)}, {"seed": -1}]
)
def test_wrong_augmentation(wrong: dict) -> None:
    with pytest.raises(UsageError):
        Augmentation(**wrong)


def test_a_complete_cache_is_only_opened(toy, views, tmp_path, monkeypatch) -> None:
    first = build(toy, views, tmp_path / "c")
    calls = count_runs(monkeypatch)
    second = build(toy, views, tmp_path / "c")
    assert not calls
    assert (first.key, first.folder) == (second.key, second.folder)
    np.testing.assert_array_equal(first.features, second.features)
    assert first.features.dtype == np.float16


def test_an_interrupted_cache_goes_on_where_it_was(toy, views, tmp_path, monkeypatch) -> None:
    whole = build(toy, views, tmp_path / "whole")
    with monkeypatch.context() as patch:
        count_runs(patch, fail_at=3)  # chunks of 7 images: one run of 21 views each
        with pytest.raises(KeyboardInterrupt):
            build(toy, views, tmp_path / "c")
    folder = tmp_path / "c" / whole.folder.name
    assert len(list((folder / "done").iterdir())) == 3
    assert not (folder / "complete.json").exists()
    # A chunk that was written in half isn't marked, so it is done again.
    half = np.load(folder / "features.npy", mmap_mode="r+")
    half[21:24] = 1.0
    half.flush()
    del half
    calls = count_runs(monkeypatch)
    resumed = build(toy, views, tmp_path / "c")
    assert calls == [21, 21, 15]
    np.testing.assert_array_equal(resumed.features, whole.features)


def test_the_key_changes_with_everything_it_depends_on(
    toy, make_model, data, preprocessing, augmentation
) -> None:
    def key(dual=toy, data=data, preprocessing=preprocessing, augmentation=augmentation) -> str:
        return key_of(describe(dual, TrainingViews(data, preprocessing, augmentation)))

    base = key()
    assert base == key()
    other = make_model()
    with torch.no_grad():
        other.conv1.bias += 1
    stride = make_model()
    stride.conv2.stride = (1, 1)
    changed = [
        key(dual=DualBranch(other, input_size=16)),
        key(dual=DualBranch(stride, input_size=16)),
        key(dual=DualBranch(make_model(), "conv1", input_size=16)),
        key(data=replace(data, samples=data.samples[::-1])),
        key(preprocessing=replace(preprocessing, resize=20)),
        key(preprocessing=replace(preprocessing, mean=(0.5, 0.5, 0.5))),
        key(augmentation=replace(augmentation, seed=1)),
        key(augmentation=replace(augmentation, views=4)),
        key(augmentation=replace(augmentation, crop_scale=(0.5, 1.0))),
        key(augmentation=replace(augmentation, flip=False)),
    ]
    os.utime(data.samples[0].path, ns=(1, 1))
    changed.append(key())
    assert len({base, *changed}) == len(changed) + 1


def test_what_makes_no_difference_shares_the_cache(toy, make_dual, views) -> None:
    base = key_of(describe(toy, views))
    same = make_dual()
    with torch.no_grad():
        for parameter in same.sigmoid_head.parameters():
            parameter += 1
    samples = [replace(one, label=3 - one.label) for one in views.dataset.samples]
    other = replace(
        views,
        dataset=replace(views.dataset, samples=samples),
        preprocessing=replace(views.preprocessing, layout="float32_nchw"),
    )
    assert base == key_of(describe(same, other))


def test_unreadable_images_are_listed(toy, views, tmp_path) -> None:
    files = [sample.path for sample in views.dataset.samples]
    files[5].write_bytes(b"not an image")
    cache = build(toy, views, tmp_path / "c")
    assert list(cache.failed) == [5]
    assert "5.png" in cache.failed[5]
    assert not cache.features[5].any()
    assert cache.features[4].any()
    assert cache.features[6].any()
    with pytest.raises(DataError, match=r"1 of 40 images of .*data can't be used(?s:.*)5\.png"):
        build(toy, views, tmp_path / "c", strict=True)
    for file in files:
        file.write_bytes(b"not an image")
    with pytest.raises(DataError, match="40 of 40 images"):
        build(toy, views, tmp_path / "d")


def test_features_that_are_not_finite_are_refused(make_dual, views, tmp_path):
    dual = make_dual()
    with torch.no_grad():
        for parameter in dual.features.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        build(dual, views, tmp_path)
    with torch.no_grad():
        for parameter in dual.features.parameters():
            parameter.fill_(1e3)
    with pytest.raises(ModelError, match="float32 cache"):
        build(dual, views, tmp_path)
    assert build(dual, views, tmp_path, dtype="float32").features.max() > 65504


def test_a_damaged_cache_is_named(toy, views, tmp_path) -> None:
    cache = build(toy, views, tmp_path)
    file = cache.folder / "features.npy"
    content = file.read_bytes()
    file.write_bytes(content[:100])
    with pytest.raises(StorageError, match="damaged; delete"):
        build(toy, views, tmp_path)
    file.write_bytes(content)
    (cache.folder / "complete.json").write_text("")  # as a power cut may leave it
    with pytest.raises(StorageError, match="damaged; delete"):
        build(toy, views, tmp_path)


def test_no_room_is_said_before_the_work(toy, views, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(cache_folder.shutil, "disk_usage", lambda _: usage)
    calls = count_runs(monkeypatch)
    with pytest.raises(StorageError, match="choose another cache folder"):
        build(toy, views, tmp_path)
    assert not calls


def test_a_folder_that_cannot_be_written(toy, views, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another cache folder"):
        build(toy, views, tmp_path / "file" / "c")


def test_two_runs_at_once_share_the_work(toy, views, tmp_path, monkeypatch) -> None:
    calls = count_runs(monkeypatch)
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(build(toy, views, tmp_path))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(calls) == 40 * 3
    np.testing.assert_array_equal(made[0].features, made[1].features)


def test_about_says_what_the_key_stands_for(toy, views, tmp_path) -> None:
    cache = build(toy, views, tmp_path)
    about = json.loads((cache.folder / "about.json").read_text())
    assert about["branch_layer"] == toy.branch_layer
    assert cache.folder.name == key_of(about)[:32]


def test_default_folder_follows_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIGCAM_CACHE_DIR", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache_dir() == Path("/x/sigcam/features")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert default_cache_dir() == Path("/local/sigcam/features")
    monkeypatch.setenv("SIGCAM_CACHE_DIR", "/chosen")
    assert default_cache_dir() == Path("/chosen/features")


def test_reader_keeps_the_order_and_stops_early(views) -> None:
    jobs = [Job(i, (0,)) for i in range(39, -1, -1)]
    with ViewReader(views, workers=3) as reader:
        assert [d.job.image for d in reader.read(jobs)] == list(range(39, -1, -1))
        stream = reader.read(jobs)
        assert next(stream).job.image == 39
        stream.close()
    with pytest.raises(UsageError, match="workers"):
        ViewReader(views, workers=0)
