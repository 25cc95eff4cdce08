"""Reading for the network: JPEGs at a part of their size, the same input, the image later."""

import copy
import io
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sigcam.core.errors import ImageError
from sigcam.core.spec import Preprocessing
from sigcam.images.decode import Encoded, read_image
from sigcam.images.formats.header import Header
from sigcam.images.preprocess import input_of, place, prepare, read_input
from sigcam.runtime.session import load
from tests.support.paths import DATA

RULES = ("crop", "stretch", "letterbox")
SIZES = st.integers(1, 900)


def preprocessing_of(rule, height=32, width=24):
    return Preprocessing(height, width, rule, 40 if rule == "crop" else None)


def blocks(height, width, seed=0):
    """Grey 8 x 8 blocks of one level each, from the first row and column on."""
    levels = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8)))
    cells = np.kron(levels, np.ones((8, 8)))[:height, :width]
    return np.repeat(cells[:, :, None], 3, 2).astype(np.uint8)


def smooth(height, width, seed=0):
    """An image whose neighbouring pixels are alike, as in a large photograph."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 12 + 2, width // 12 + 2, 3))
    return cv2.resize(noise.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def cells(image, n):
    """Means of the n x n cells from the first row and column on; of what there is at the end."""
    rows, columns = (np.arange(0, size, n) for size in image.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(image.astype(int), rows, 0), columns, 1)
    counts = np.outer(*(np.diff([*np.arange(0, size, n), size]) for size in image.shape[:2]))
    return np.round(sums / counts[:, :, None]).astype(np.uint8)


@pytest.fixture
def decoded(monkeypatch):
    """How often images were decoded: 1 whole, n at 1/n."""
    calls = []
    whole, reduced = Encoded.decode, Encoded.decode_reduced

    def count_whole(self, *pixels):
        calls.append(1)
        return whole(self, *pixels)

    def count_reduced(self, reduction, *pixels):
        calls.append(reduction)
        return reduced(self, reduction, *pixels)

    monkeypatch.setattr(Encoded, "decode", count_whole)
    monkeypatch.setattr(Encoded, "decode_reduced", count_reduced)
    return calls


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), rule=st.sampled_from(RULES))
@example(height=299, width=301, rule="stretch")
@example(height=523, width=411, rule="crop")
def test_an_image_shrunk_by_its_cells_gives_the_same_input(height, width, rule):
    preprocessing = preprocessing_of(rule, 12, 10)
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    wanted, placement = prepare(image, preprocessing)
    for n in (2, 4, 8):
        if placement.reduction % n == 0:
            got = input_of(cells(image, n), placement, preprocessing, reduction=n)
            # Levels are rounded once more, and once more where a box average follows.
            assert np.abs(got.astype(int) - wanted).max() <= 2


@settings(max_examples=150, deadline=None)
@given(height=SIZES, width=SIZES, rule=st.sampled_from(RULES), orientation=st.integers(1, 8))
@example(height=801, width=603, rule="crop", orientation=3)
@example(height=803, width=600, rule="stretch", orientation=6)
def test_blocks_are_the_same_for_every_orientation(jpeg, height, width, rule, orientation):
    data = jpeg(blocks(height, width), orientation, 100)
    preprocessing = preprocessing_of(rule)
    wanted, placement = prepare(read_image(data), preprocessing)
    got = read_input(data, preprocessing)
    assert got.placement == placement
    assert np.abs(got.tensor.astype(int) - wanted).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("size", "factor"), [((100, 76), 2), ((148, 124), 4), ((276, 228), 8), ((296, 244), 8)]
)
def test_how_small_a_jpeg_is_decoded(jpeg, decoded, size, factor, orientation):
    preprocessing = Preprocessing(32, 24, "stretch")
    upright = size if orientation < 5 else size[::-1]
    factor = min(factor, place(preprocessing, *upright).reduction)
    rows_turned, columns_turned = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    while (rows_turned and upright[0] % factor) or (columns_turned and upright[1] % factor):
        factor //= 2
    read_input(jpeg(smooth(*size), orientation), preprocessing)
    assert decoded == [factor]


def test_sizes_of_cameras_are_decoded_small_however_they_are_held(jpeg, decoded):
    for orientation in range(1, 9):
        read_input(jpeg(smooth(504, 672), orientation), Preprocessing(56, 56, "crop", 64))
    assert decoded == [4] * 8


@pytest.mark.parametrize("kind", ["grey", "cmyk", "progressive", "4:2:0", "4:4:4"])
@pytest.mark.parametrize("size", [(300, 421), (640, 480)])
def test_jpegs_of_every_kind(decoded, kind, size):
    pillow = pytest.importorskip("PIL.Image", reason="Pillow writes these files")
    image = pillow.fromarray(smooth(*size))
    image = image.convert({"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB"))
    stream = io.BytesIO()
    options = {"subsampling": kind} if kind[0] == "4" else {"progressive": kind == "progressive"}
    image.save(stream, "JPEG", quality=92, **options)
    preprocessing = preprocessing_of("crop")
    wanted, placement = prepare(read_image(stream.getvalue()), preprocessing)
    decoded.clear()
    got = read_input(stream.getvalue(), preprocessing)
    assert got.placement == placement
    assert min(decoded) > 1
    # These colours change faster than subsampled chroma can follow.
    assert np.abs(got.tensor.astype(int) - wanted).max() <= 16
    assert np.abs(got.tensor.astype(int) - wanted).mean() <= 2


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tiff"])
def test_other_formats_are_read_whole(decoded, suffix):
    data = cv2.imencode(suffix, smooth(400, 500))[1].tobytes()
    got = read_input(data, preprocessing_of("crop"))
    assert decoded == [1]
    got_again = prepare(read_image(data), preprocessing_of("crop"))[0]
    np.testing.assert_array_equal(got.tensor, got_again)


@pytest.mark.shared
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(("length", "reduction"), [(112, 2), (56, 4), (28, 8)])
def test_photographs_differ_by_what_is_said(decoded, length, reduction):
    preprocessing = Preprocessing(length, length, "crop", length * 8 // 7)
    paths = sorted((DATA / "imagenet_samples").rglob("*.jpg"))[::25]
    differences = []
    for path in paths:
        decoded.clear()
        got = read_input(path, preprocessing).tensor.astype(int)
        if decoded == [reduction]:
            differences.append(np.abs(got - prepare(read_image(path), preprocessing)[0]))
    assert len(differences) > 20
    assert np.mean(differences) < 1
    assert np.quantile(differences, 0.99) < 8


@settings(max_examples=100, deadline=None)
@given(at=st.floats(0, 1), length=st.integers(1, 400), cut=st.booleans())
def test_damage_is_found_as_in_an_image_read_whole(jpeg, at, length, cut):
    data = jpeg(smooth(200, 240))
    first = int(at * len(data))
    data = data[:first] + (b"" if cut else bytes(length) + data[first + length :])

    def outcome(read):
        try:
            read()
        except ImageError as exc:
            return str(exc)
        return None

    wanted = outcome(lambda: read_image(data))
    assert outcome(lambda: read_input(data, preprocessing_of("crop"))) == wanted
    assert wanted is not None or not cut or first == len(data)


def test_the_limit_of_pixels_holds(jpeg):
    with pytest.raises(ImageError, match="raise max_pixels"):
        read_input(jpeg(smooth(400, 500)), preprocessing_of("crop"), max_pixels=199_999)


def test_a_header_that_the_decoder_contradicts(jpeg, decoded, monkeypatch):
    data = jpeg(smooth(400, 500))
    lie = Header(600, 400, components=3)
    monkeypatch.setattr("sigcam.images.decode.read_header", lambda *rest: lie)
    got = read_input(data, preprocessing_of("crop"))
    assert decoded == [8, 1]
    assert (got.placement.height, got.placement.width) == (400, 500)
    np.testing.assert_array_equal(
        got.tensor, prepare(read_image(data), preprocessing_of("crop"))[0]
    )


def test_memory(jpeg):
    data = jpeg(smooth(1600, 2000))
    preprocessing = Preprocessing(56, 56, "crop", 64)

    def most(read):
        tracemalloc.start()
        kept = read()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        del kept
        return peak

    read_input(data, preprocessing)
    assert most(lambda: read_image(data)) > 1600 * 2000 * 3
    assert most(lambda: read_input(data, preprocessing)) < 1600 * 2000 * 3 / 10


@pytest.fixture
def large(jpeg, tmp_path):
    path = tmp_path / "large.jpg"
    path.write_bytes(jpeg(smooth(400, 500), 6))
    return path


@pytest.fixture(scope="module")
def session(make_artifact):
    with load(make_artifact(), threads=1) as opened:
        yield opened


def test_the_image_is_decoded_whole_when_it_is_shown(session, large, decoded):
    for source in (large, str(large), large.read_bytes()):
        decoded.clear()
        first, second = session.explain(source, top_k=2)
        first.to_dict()
        assert first.heatmap.shape == (500, 400)
        assert decoded == [4]
        with ThreadPoolExecutor(8) as pool:
            shown = list(pool.map(lambda one: one.image, [first, second] * 8))
        assert decoded == [4, 1]
        assert all(image is shown[0] for image in shown)
        np.testing.assert_array_equal(shown[0], read_image(large))
        assert first.overlay().shape == (500, 400, 3)


def test_maps_are_those_of_the_whole_image(session, large):
    [got], [wanted] = session.explain(large), session.explain(read_image(large))
    assert (got.size, got.crop_box) == (wanted.size, wanted.crop_box)
    assert got.class_id == wanted.class_id
    np.testing.assert_allclose(got.cam, wanted.cam, atol=0.01)


def test_a_file_that_is_gone(session, large):
    [one] = session.explain(large)
    large.unlink()
    assert one.valid
    with pytest.raises(ImageError, match=r"can't be shown.*no image file.*large\.jpg"):
        one.overlay()


@pytest.mark.parametrize("how", ["longer", "another time", "another size", "truncated"])
def test_a_file_that_changed(session, large, jpeg, how):
    [one] = session.explain(large)
    data, status = large.read_bytes(), large.stat()
    changed = {
        "longer": data + b"\0",
        "another time": data,
        "another size": jpeg(smooth(300, 500)),
        "truncated": data[:-100],
    }[how]
    large.write_bytes(changed)
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns + (how == "another time")))
    wanted = "truncated JPEG" if how == "truncated" else "has changed since"
    with pytest.raises(ImageError, match=wanted):
        _ = one.image
    large.write_bytes(data)
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert one.image.shape == (500, 400, 3)


def test_a_relative_path_outlives_a_change_of_folder(session, large, tmp_path, monkeypatch):
    monkeypatch.chdir(large.parent)
    [one] = session.explain("large.jpg")
    assert one.source == "large.jpg"
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(one.image, read_image(large))


def test_copies_decode_for_themselves(session, large):
    for source in (large, large.read_bytes()):
        [one] = session.explain(source)
        for made in (copy.copy(one), copy.deepcopy(one)):
            np.testing.assert_array_equal(made.image, read_image(large))
