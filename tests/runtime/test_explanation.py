import json

import cv2
import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.core.spec import Preprocessing
from sigcam.images.boxes import Box
from sigcam.images.preprocess import Original, place
from sigcam.images.upsample import to_heatmap
from sigcam.runtime.explanation import ExplainedImage, Explanation

EXACT = Preprocessing(56, 56, "stretch")
CROP = Preprocessing(56, 56, "crop", 64)


def explanation_of(cam, size=(56, 56), preprocessing=EXACT, **changes):
    fields = {
        "class_id": 3,
        "label": "tabby cat",
        "method": "cam",
        "probability": 0.75,
        "evidence": 0.5,
        "cam": np.asarray(cam, np.float32),
        "source": "cat.jpg",
        "_image": ExplainedImage(
            place(preprocessing, *size), Original(np.full((*size, 3), 100, np.uint8))
        ),
    }
    return Explanation(**{**fields, **changes})


def two_spots():
    cam = np.zeros((7, 7))
    cam[1, 1] = 0.8
    cam[4:6, 4:6] = 1
    return cam


def test_the_map_is_made_once_and_read_only():
    one = explanation_of(two_spots(), (90, 60), CROP)
    wanted, valid = to_heatmap(one.cam, one._image.placement)
    np.testing.assert_array_equal(one.heatmap, wanted)
    assert one.valid is valid is True
    assert one.heatmap is one.heatmap
    with pytest.raises(ValueError, match="read-only"):
        one.heatmap[0, 0] = 1


def test_boxes_hold_their_regions():
    one = explanation_of(two_spots())
    for threshold in (0.1, 0.2, 0.5):
        large, small = one.boxes(threshold)
        count, labels = cv2.connectedComponents((one.heatmap >= threshold).astype(np.uint8))
        assert count == 3
        for box, inside in ((small, (12, 12)), (large, (40, 40))):
            ys, xs = np.where(labels == labels[inside])
            assert box == Box(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert len(one.boxes(0.9)) == 1
    assert len(one.boxes(1.0)) >= 1


def test_boxes_stay_in_the_window():
    one = explanation_of(np.eye(7) + 1, (60, 200), CROP)
    x0, y0, x1, y1 = one.crop_box
    for box in one.boxes(0.05):
        assert x0 <= box.x0 < box.x1 <= x1
        assert y0 <= box.y0 < box.y1 <= y1


@pytest.mark.parametrize("threshold", [0, -1, 1.01, np.nan])
def test_bad_thresholds(threshold):
    with pytest.raises(UsageError, match="threshold"):
        explanation_of(two_spots()).boxes(threshold)


def test_a_map_that_is_not_valid_has_nothing_to_show():
    one = explanation_of(np.ones((7, 7)))
    assert not one.valid
    assert not one.heatmap.any()
    assert one.boxes() == []
    np.testing.assert_array_equal(one.overlay(box_threshold=0.2), one.image)


def test_overlay_colours_the_window_only():
    one = explanation_of(two_spots(), (60, 120), CROP)
    before = one.image.copy()
    drawn = one.overlay()
    assert drawn.dtype == np.uint8
    assert drawn.shape == (60, 120, 3)
    x0, y0, x1, y1 = one.crop_box
    np.testing.assert_array_equal(drawn[:, :x0], 100)
    np.testing.assert_array_equal(drawn[:, x1:], 100)
    np.testing.assert_array_equal(one.image, before)
    # Brighter where there is more evidence, so that it reads in grey as well.
    grey = cv2.cvtColor(drawn, cv2.COLOR_RGB2GRAY)[y0:y1, x0:x1].astype(float)
    assert np.corrcoef(grey.ravel(), one.heatmap[y0:y1, x0:x1].ravel())[0, 1] > 0.95
    peak = np.unravel_index(one.heatmap.argmax(), one.heatmap.shape)
    plain = one.overlay(alpha=1)
    assert tuple(plain[peak]) == (252, 255, 164)  # inferno's brightest yellow
    assert tuple(plain[y0, x0]) == (0, 0, 4)  # its darkest blue


def test_alpha():
    one = explanation_of(two_spots())
    np.testing.assert_array_equal(one.overlay(alpha=0), one.image)
    assert np.abs(one.overlay(alpha=1).astype(int) - one.overlay(alpha=0.5)).max() > 20
    for alpha in (-0.1, 1.1, np.nan):
        with pytest.raises(UsageError, match="alpha"):
            one.overlay(alpha=alpha)


def test_boxes_are_drawn():
    one = explanation_of(two_spots())
    changed = (one.overlay(box_threshold=0.5) != one.overlay()).any(2)
    for box in one.boxes(0.5):
        assert changed[box.y0, box.x0 : box.x1].all()
        assert changed[box.y1 - 1, box.x0 : box.x1].all()
        assert changed[box.y0 : box.y1, box.x0].all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_tiny_images_can_be_shown(size):
    one = explanation_of(two_spots(), size, CROP)
    assert one.overlay(box_threshold=0.2).shape == (*size, 3)
    json.dumps(one.to_dict())


def test_to_dict_is_json():
    one = explanation_of(two_spots(), (60, 120), CROP)
    data = json.loads(json.dumps(one.to_dict(0.5), allow_nan=False))
    assert data["label"] == "tabby cat"
    assert data["class_id"] == 3
    assert data["probability"] == 0.75
    assert data["evidence"] == 0.5
    assert data["source"] == "cat.jpg"
    assert (data["width"], data["height"]) == (120, 60)
    assert data["crop_box"] == list(one.crop_box)
    assert data["box_threshold"] == 0.5
    assert data["boxes"] == [list(box) for box in one.boxes(0.5)]
    assert explanation_of(two_spots(), evidence=None).to_dict()["evidence"] is None


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp"])
def test_saving_the_overlay(tmp_path, suffix):
    one = explanation_of(two_spots())
    path = tmp_path / "made" / f"out{suffix}"
    one.save(path)
    back = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB).astype(int)
    limit = 0 if suffix == ".png" else 40
    assert np.abs(back - one.overlay()).mean() <= limit / 4
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_saving_arrays(tmp_path):
    one = explanation_of(two_spots(), source=None, evidence=None)
    one.save(tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as data:
        np.testing.assert_array_equal(data["cam"], one.cam)
        np.testing.assert_array_equal(data["heatmap"], one.heatmap)
        np.testing.assert_array_equal(data["boxes"], one.boxes())
        assert data["label"] == "tabby cat"
        assert data["class_id"] == 3
        assert np.isnan(data["evidence"])
        assert data["source"] == ""
    explanation_of(np.ones((7, 7))).save(tmp_path / "flat.npz")
    with np.load(tmp_path / "flat.npz", allow_pickle=False) as data:
        assert data["boxes"].shape == (0, 4)
        assert not data["valid"]


def test_saving_json(tmp_path):
    one = explanation_of(two_spots(), label="écru")
    one.save(tmp_path / "out.json")
    text = (tmp_path / "out.json").read_text(encoding="utf-8")
    assert "écru" in text
    assert json.loads(text) == one.to_dict()


@pytest.mark.parametrize("name", ["out.bmp", "out", "out.png.txt"])
def test_other_suffixes(tmp_path, name):
    with pytest.raises(UsageError, match=r"\.png, \.jpg, \.jpeg, \.webp.*\.npz.*\.json"):
        explanation_of(two_spots()).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_an_image_too_large_for_the_format(tmp_path):
    one = explanation_of(two_spots(), (2, 17_000), EXACT)
    with pytest.raises(UsageError, match=r"17000 x 2 pixels as \.webp; save as \.png"):
        one.save(tmp_path / "out.webp")
    assert list(tmp_path.iterdir()) == []
    one.save(tmp_path / "out.png")
