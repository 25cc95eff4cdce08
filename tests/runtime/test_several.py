"""Heatmaps of several classes as one array, and the range that maps share."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.core.spec import Preprocessing
from sigcam.images.preprocess import Original, place
from sigcam.runtime.explanation import ExplainedImage, Explanation
from sigcam.runtime.several import shared_cam_range, stack_heatmaps

RULES = [
    Preprocessing(56, 56, "stretch"),
    Preprocessing(56, 56, "crop", 64),
    Preprocessing(56, 56, "letterbox"),
]


def explained(cams, size=(90, 130), preprocessing=RULES[1], **changes):
    """One image, and an Explanation of it for each CAM."""
    image = ExplainedImage(place(preprocessing, *size), Original(np.zeros((*size, 3), np.uint8)))
    return [
        Explanation(i, str(i), 0.5, None, cam.astype(np.float32), "cam", _image=image, **changes)
        for i, cam in enumerate(map(np.asarray, cams))
    ]


def some_cams(count=5):
    return np.random.default_rng(0).exponential(size=(count, 7, 7))


@pytest.mark.parametrize("preprocessing", RULES, ids=lambda one: one.rule)
@pytest.mark.parametrize("size", [(90, 130), (7, 500), (1, 1), (1300, 40)])
def test_one_array_holds_the_heatmaps(preprocessing, size):
    found = explained(some_cams(), size, preprocessing)
    wanted = np.stack([one.heatmap for one in explained(some_cams(), size, preprocessing)])
    as_bytes, as_floats = stack_heatmaps(found), stack_heatmaps(found, np.float32)
    assert (as_bytes.dtype, as_floats.dtype) == (np.uint8, np.float32)
    np.testing.assert_array_equal(as_floats, wanted)
    assert np.abs(as_bytes - 255.0 * wanted).max() <= 0.5 + 1e-3
    x0, y0, x1, y1 = found[0].crop_box
    outside = np.ones(size, bool)
    outside[y0:y1, x0:x1] = False
    assert not as_bytes[:, outside].any()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("preprocessing", RULES, ids=lambda one: one.rule)
def test_images_of_one_size_and_maps_that_are_not_valid(preprocessing, dtype):
    """Whatever is enlarged together: other cells, constant and infinite maps, ones made before."""
    rng = np.random.default_rng(1)
    cams = [
        *rng.random((3, 7, 7)), np.ones((7, 7)), np.full((7, 7), np.inf), rng.random((7, 7)),
        rng.random((4, 9)), rng.random((1, 1)), rng.random((1, 3)), rng.random((40, 3)),
    ]  # fmt: skip
    found = explained(cams, (31, 57), preprocessing) + explained(cams[:2], (31, 57), RULES[0])
    found[1].heatmap  # noqa: B018
    wanted = np.stack([copy.copy(one).heatmap for one in found])
    if dtype == np.uint8:
        np.testing.assert_allclose(stack_heatmaps(found, dtype), 255.0 * wanted, atol=0.501)
    else:
        np.testing.assert_array_equal(stack_heatmaps(found, dtype), wanted)
    assert not stack_heatmaps(found[3:5], dtype).any()


def test_what_is_in_an_array_is_written_over():
    one = explained(some_cams(1), (90, 130), RULES[1])[0]
    for dtype in (np.uint8, np.float32):
        out = np.full((90, 130), 77, dtype)
        assert one.write_heatmap(out)
        np.testing.assert_array_equal(out, stack_heatmaps([one], dtype)[0])
    flat = explained([np.ones((7, 7))])[0]
    assert not flat.write_heatmap(out)
    assert not out.any()


def test_nothing_is_kept():
    """A heatmap that was made before is taken; one that wasn't is not kept by the stack."""
    found = explained(some_cams())
    before = found[0].heatmap
    stacked = stack_heatmaps(found, "float32")
    assert [("_heatmap" in vars(one)) for one in found] == [True, False, False, False, False]
    np.testing.assert_array_equal(stacked[0], before)
    assert not np.shares_memory(stacked, before)
    stacked[:] = 7  # the caller's own
    np.testing.assert_array_equal(found[0].heatmap, before)


def test_what_a_device_made_is_taken():
    made = np.full((90, 130), 0.4, np.float32)
    found = explained(some_cams(1), _made=(made, True))
    assert (stack_heatmaps(found) == 102).all()


def test_maps_that_are_not_valid_are_zero():
    cams = [np.ones((7, 7)), np.full((7, 7), np.nan), np.eye(7)]
    stacked = stack_heatmaps(explained(cams))
    assert stacked.max((1, 2)).tolist() == [0, 0, 255]


def test_generators_and_lists_of_lists():
    found = explained(some_cams(4))
    wanted = stack_heatmaps(found)
    np.testing.assert_array_equal(stack_heatmaps(iter(found)), wanted)
    np.testing.assert_array_equal(stack_heatmaps([found[:1], found[1:]]), wanted)


def test_threads_and_copies_see_the_same():
    found = explained(some_cams(20))
    wanted = stack_heatmaps(explained(some_cams(20)))
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: stack_heatmaps(found), range(16)):
            np.testing.assert_array_equal(got, wanted)
        assert {one.shape for one in pool.map(lambda one: one.heatmap, found * 4)} == {(90, 130)}
    copies = copy.deepcopy(found)
    np.testing.assert_array_equal(stack_heatmaps(copies), wanted)
    with pytest.raises(ValueError, match="read-only"):
        found[0].heatmap[0] = 1


@pytest.mark.parametrize("bad", [None, 3, "map", b"map", [None], [1, 2], [np.zeros((2, 2))], []])
@pytest.mark.parametrize("function", [stack_heatmaps, shared_cam_range])
def test_what_is_no_explanation(bad, function):
    with pytest.raises(UsageError, match=r"Explanation|none that is finite"):
        function(bad)


@pytest.mark.parametrize("dtype", [np.float64, "int8", "nonsense", None, 3, bool])
def test_other_types(dtype):
    with pytest.raises(UsageError, match="dtype must be uint8 or float32"):
        stack_heatmaps(explained(some_cams(1)), dtype)


def test_images_of_several_sizes():
    found = explained(some_cams(1)) + explained(some_cams(1), (60, 60))
    with pytest.raises(UsageError, match="60 x 60, 130 x 90 pixels"):
        stack_heatmaps(found)


@pytest.mark.parametrize(
    "bad", [None, np.zeros((3, 3), np.uint8), np.zeros((90, 130)), [[0]], np.zeros((1, 90, 130))]
)
def test_where_a_heatmap_cannot_be_written(bad):
    with pytest.raises(UsageError, match="out must be"):
        explained(some_cams(1))[0].write_heatmap(bad)


def test_the_shared_range_is_that_of_the_enlarged_maps():
    cams = some_cams(3)
    cams[1] *= -1
    found = explained(cams)
    ranges = [one.cam_range for one in found]
    assert shared_cam_range(found) == (min(r[0] for r in ranges), max(r[1] for r in ranges))
    assert shared_cam_range(found)[1] < cams.max()  # cells that the crop cuts off don't count
    bad = explained([np.full((7, 7), np.inf)])
    assert bad[0].cam_range is None
    assert shared_cam_range([*found, *bad]) == shared_cam_range(found)
    for none in (bad, explained([np.ones((7, 7))])):
        with pytest.raises(UsageError, match="give it by hand"):
            shared_cam_range(none)
