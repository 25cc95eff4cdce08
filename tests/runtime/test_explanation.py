import json

import cv2
import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.core.spec import Preprocessing
from sigcam.images.boxes import Box
from sigcam.images.overlay import OverlayOptions
from sigcam.images.preprocess import Original, place
from sigcam.images.upsample import to_heatmap
from sigcam.runtime.explanation import ExplainedImage, Explanation
from sigcam.runtime.several import shared_cam_range

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
    np.testing.assert_array_equal(one.overlay(OverlayOptions(boxes=0.2)), one.image)


def test_an_overlay_changes_the_crop_box_only():
    one = explanation_of(two_spots(), (60, 120), CROP)
    before = one.image.copy()
    drawn = one.overlay()
    assert drawn.dtype == np.uint8
    assert drawn.shape == (60, 120, 3)
    x0, y0, x1, y1 = one.crop_box
    np.testing.assert_array_equal(drawn[:, :x0], 100)
    np.testing.assert_array_equal(drawn[:, x1:], 100)
    np.testing.assert_array_equal(one.image, before)
    plain = one.overlay(OverlayOptions(alpha=1, opacity="even"))
    # Brighter where there is more evidence, so that it reads in grey as well.
    grey = cv2.cvtColor(plain, cv2.COLOR_RGB2GRAY)[y0:y1, x0:x1].astype(float)
    assert np.corrcoef(grey.ravel(), one.heatmap[y0:y1, x0:x1].ravel())[0, 1] > 0.95
    peak = np.unravel_index(one.heatmap.argmax(), one.heatmap.shape)
    assert tuple(plain[peak]) == (252, 255, 164)  # inferno's brightest yellow
    assert tuple(plain[y0, x0]) == (0, 0, 4)  # its darkest blue
    assert tuple(drawn[y0, x0]) == (100, 100, 100)  # nothing is said there


def test_boxes_are_drawn():
    one = explanation_of(two_spots())
    changed = (one.overlay(OverlayOptions(boxes=0.5)) != one.overlay()).any(2)
    for box in one.boxes(0.5):
        assert changed[box.y0, box.x0 : box.x1].all()
        assert changed[box.y1 - 1, box.x0 : box.x1].all()
        assert changed[box.y0 : box.y1, box.x0].all()


def test_the_label_is_that_of_the_class():
    large = (200, 300)
    one, other = (explanation_of(two_spots(), large, label=name) for name in ("chat", "chien"))
    options = OverlayOptions(label=True)
    assert (one.overlay(options) != one.overlay()).any()
    assert (one.overlay(options) != other.overlay(options)).any()


def test_another_image_to_draw_on():
    one = explanation_of(two_spots())
    frame = np.full((56, 56, 3), 7, np.uint8)
    assert tuple(one.overlay(image=frame)[0, 0]) == (7, 7, 7)
    for bad in (frame[:-1], frame[..., 0], frame.astype(np.float64), "frame"):
        with pytest.raises(UsageError, match="image must be"):
            one.overlay(image=bad)


def test_the_map_alone_needs_no_image():
    class Gone:
        @property
        def image(self):
            raise AssertionError("the image was decoded")

    one = explanation_of(two_spots(), _image=ExplainedImage(place(EXACT, 56, 56), Gone()))
    alone = one.overlay(OverlayOptions(background="none", alpha=1))
    assert alone.shape == (56, 56, 4)
    np.testing.assert_allclose(alone[..., 3] / 255, one.heatmap, atol=0.003)


def test_one_range_makes_maps_comparable():
    """The same value of the CAM has the same colour in both, which their own ranges don't give."""
    weak, strong = np.zeros((7, 7)), np.zeros((7, 7))
    weak[3, 3], strong[1, 1], strong[3, 3] = 1, 4, 1
    one, two = explanation_of(weak), explanation_of(strong)
    assert one.overlay()[28, 28].tolist() != two.overlay()[28, 28].tolist()
    shared = shared_cam_range([[one], [two]])
    assert shared == two.cam_range
    assert shared == pytest.approx((0.0, 3.5), abs=0.1)
    drawn = [each.overlay(OverlayOptions(cam_range=shared)) for each in (one, two)]
    np.testing.assert_array_equal(drawn[0][28, 28], drawn[1][28, 28])
    # A constant map has a value too, where the range says what it means.
    flat = explanation_of(np.full((7, 7), 4.0))
    np.testing.assert_array_equal(flat.overlay(), flat.image)
    painted = flat.overlay(OverlayOptions(cam_range=shared, alpha=1))
    assert (painted == (252, 255, 164)).all()


def test_a_signed_map_is_clear_at_zero():
    cam = np.zeros((7, 7))
    cam[1, 1], cam[5, 5] = -2, 1
    one = explanation_of(cam)
    drawn = one.overlay(OverlayOptions(colour_map="blue-red", alpha=1)).astype(int)
    negative, zero, positive = drawn[12, 12], drawn[12, 44], drawn[44, 44]
    assert negative[2] > negative[0] + 50
    np.testing.assert_array_equal(zero, 100)
    assert positive[0] > positive[2] + 50
    # Half as far from zero, so half as strong.
    assert abs(positive - 100).max() < abs(negative - 100).max()


@pytest.mark.parametrize("cam", [np.full((7, 7), np.nan), np.zeros((7, 7))])
@pytest.mark.parametrize("changes", [{}, {"colour_map": "blue-red"}, {"contours": (0.5,)}])
def test_nothing_to_show_leaves_the_image(cam, changes):
    one = explanation_of(cam)
    np.testing.assert_array_equal(one.overlay(OverlayOptions(**changes)), one.image)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_tiny_images_can_be_shown(size):
    one = explanation_of(two_spots(), size, CROP)
    everything = OverlayOptions(boxes=0.2, label=True, legend=True, contours=(0.5,))
    assert one.overlay(everything).shape == (*size, 3)
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
    assert data["cam_range"] == list(one.cam_range)
    assert data["boxes"] == [list(box) for box in one.boxes(0.5)]
    assert explanation_of(two_spots(), evidence=None).to_dict()["evidence"] is None


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_saving_the_map_alone(tmp_path, suffix):
    one = explanation_of(two_spots())
    options = OverlayOptions(background="none")
    one.save(tmp_path / f"out{suffix}", options)
    back = cv2.imread(str(tmp_path / f"out{suffix}"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(back[..., 3], one.overlay(options)[..., 3], atol=3)
    with pytest.raises(UsageError, match=r"transparent.*\.png or \.webp"):
        one.save(tmp_path / "out.jpg", options)


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


@pytest.mark.parametrize("frame", ["", "#2"])
def test_the_explained_file_is_not_written_over(tmp_path, frame):
    image = tmp_path / "cat.png"
    image.write_bytes(b"an image")
    (tmp_path / "link.png").symlink_to(image)
    one = explanation_of(two_spots(), source=f"{image}{frame}")
    for path in (image, tmp_path / "link.png"):
        with pytest.raises(UsageError, match=r"is an input .*name another file"):
            one.save(path)
    assert image.read_bytes() == b"an image"
    one.save(tmp_path / "map.png")
