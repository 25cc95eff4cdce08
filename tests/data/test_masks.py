"""Masks as arrays: the reference's way, step by step, beside ours."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from sigcam.core.errors import DataError, UsageError
from sigcam.data import Place, Sample, read_masks
from tests.support.tiny_datasets import image_writer


@pytest.fixture
def write(tmp_path):
    return image_writer(tmp_path)


def sample(masks, ignore=(), level=None, size=None):
    place = Place(Path("masks.txt"), 1)
    return Sample(
        "a", Path("a"), place, masks=tuple(masks), mask_places=(place,) * len(masks),
        ignore=tuple(ignore), ignore_level=level, size=size,
    )  # fmt: skip


def by_definition(path):
    """As float32, to 224x224 with INTER_NEAREST, over 0.5 (Choe et al. 2020)."""
    grey = np.float32(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    return cv2.resize(grey, (224, 224), interpolation=cv2.INTER_NEAREST) > 0.5


@pytest.mark.parametrize("shape", [(224, 224), (375, 500), (97, 61), (768, 1024)])
@pytest.mark.parametrize("high", [1, 255])
def test_like_the_reference(write, shape, high):
    random = np.random.default_rng(shape[0])
    paths = [
        write(f"{name}.png", pixels=(random.random(shape) < 0.4).astype(np.uint8) * high)
        for name in "abc"
    ]
    inside, ignored = read_masks(sample(paths[:2], paths[2:]))
    expected = by_definition(paths[0]) | by_definition(paths[1])
    assert inside.dtype == ignored.dtype == bool
    assert (inside == expected).all()
    assert (ignored == by_definition(paths[2]) & ~expected).all()


def test_a_trimaps_border_is_ignored(write):
    pixels = np.array([[0, 128, 255], [255, 128, 0]], np.uint8)
    other = np.array([[0, 255, 0], [0, 0, 0]], np.uint8)
    paths = [write("1.png", pixels=pixels), write("2.png", pixels=other)]
    inside, ignored = read_masks(sample(paths[:1], level=128, size=(3, 2)), None)
    assert (inside == (pixels == 255)).all()
    assert (ignored == (pixels == 128)).all()
    inside, ignored = read_masks(sample(paths, level=128, size=(3, 2)), None)
    assert (inside == (pixels == 255) | (other == 255)).all()
    assert ignored.sum() == 1  # what is an object in one mask isn't ignored in another
    inside, _ = read_masks(sample(paths[:1]), (3, 2))
    assert (inside == (pixels > 0)).all()  # without a second comma it would be the object


def test_a_mask_of_colours(write):
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 1] = (0, 0, 200)
    inside, _ = read_masks(sample([write("1.png", pixels=pixels)]), (2, 2))
    assert inside.tolist() == [[False, True], [False, False]]


def test_masks_that_cannot_be_read(write, tmp_path):
    path = write("1.png")
    with pytest.raises(DataError, match=r"2\.png can't be read"):
        read_masks(sample([tmp_path / "2.png"]))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"1\.png can't be decoded"):
        read_masks(sample([path]))
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"1\.png can't be decoded"):
        read_masks(sample([path]))
    with pytest.raises(UsageError, match="a has no masks"):
        read_masks(Sample("a", Path("a"), Place(Path("b"))))
    with pytest.raises(UsageError, match="the size of a is unknown"):
        read_masks(sample([path]), None)
