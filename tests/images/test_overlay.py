"""Maps drawn on images: what each option changes, against values worked out by hand."""

import cv2
import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.images import text as texts
from sigcam.images.colour_maps import colour_maps, colours_of
from sigcam.images.overlay import OverlayOptions, draw, line_width
from sigcam.images.text import blend, letters, shortened, text_size, write_lines


def ramp(height=60, width=256):
    """Values from 0 at the left to 1 at the right."""
    return np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1))


def noise(height=60, width=256):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def whole(image):
    return 0, 0, image.shape[1], image.shape[0]


@pytest.mark.parametrize("opacity", ["value", "even"])
@pytest.mark.parametrize("name", ["inferno", "jet", "blue-red", "grey"])
def test_colours_are_mixed_by_their_weight(opacity, name):
    """Against the definition in float64."""
    image, values = noise(), ramp()
    options = OverlayOptions(alpha=0.6, opacity=opacity, colour_map=name)
    drawn = draw(image, values, whole(image), options)
    level = np.rint(values * 255).astype(int)
    weight = {
        ("value", True): np.abs(2 * values - 1),
        ("value", False): values,
    }.get((opacity, name == "blue-red"), np.ones_like(values))[..., None] * 0.6
    wanted = colours_of(name)[level] * weight + image * (1 - weight)
    np.testing.assert_allclose(drawn, wanted, atol=2.5)


def test_where_the_map_is_zero_the_image_stays():
    image = noise()
    values = ramp() * (ramp() > 0.5)
    for options in (OverlayOptions(), OverlayOptions(colour_map="jet", alpha=1)):
        drawn = draw(image, values, whole(image), options)
        np.testing.assert_array_equal(drawn[values == 0], image[values == 0])
    dark = draw(image, values, whole(image), OverlayOptions(opacity="even"))
    assert (dark[values == 0] != image[values == 0]).any(1).mean() > 0.9


def test_outside_the_crop_box_nothing_changes():
    image = noise()
    options = OverlayOptions(opacity="even", contours=(0.1, 0.5))
    drawn = draw(image, ramp(), (20, 10, 200, 50), options)
    inside = np.zeros(image.shape[:2], bool)
    inside[10:50, 20:200] = True
    np.testing.assert_array_equal(drawn[~inside], image[~inside])


def test_the_map_alone_composes_to_the_overlay():
    """Laid over the image by its alpha channel, it gives what is drawn on the image."""
    image, values = noise(), ramp()
    alone = draw(image, values, (20, 10, 200, 50), OverlayOptions(background="none")).astype(float)
    share = alone[..., 3:] / 255
    composed = alone[..., :3] * share + image * (1 - share)
    np.testing.assert_allclose(composed, draw(image, values, (20, 10, 200, 50)), atol=2.5)
    assert not alone[:10].any()


def test_contours_run_along_their_levels():
    image = np.full((60, 256, 3), 128, np.uint8)
    options = OverlayOptions(alpha=0, contours=(0.25, 0.75))
    changed = (draw(image, ramp(), whole(image), options) != image).any(2)
    columns = np.flatnonzero(changed.any(0))
    assert changed[:, columns].mean() > 0.9  # from the upper edge to the lower one
    assert np.abs(columns - 0.25 * 255)[columns < 128].max() <= 4
    assert np.abs(columns - 0.75 * 255)[columns > 128].max() <= 4
    # No line along the edge of the image, where the region is cut off.
    assert not changed[:, -40:].any()


def test_contours_of_holes_are_drawn():
    y, x = np.mgrid[:100, :100] - 50
    ring = np.exp(-(((np.hypot(x, y) - 25) / 8) ** 2)).astype(np.float32)
    image = np.full((100, 100, 3), 128, np.uint8)
    changed = draw(image, ring, whole(image), OverlayOptions(alpha=0, contours=(0.5,))) != image
    assert changed[50, 50:70].any()
    assert changed[50, 70:].any()


@pytest.mark.parametrize("size", [(100, 100), (480, 640), (3000, 4000), (8000, 6000)])
def test_lines_and_letters_grow_with_the_image(size):
    shorter = min(size)
    assert line_width(np.broadcast_to(np.uint8(0), (*size, 3))) == max(1, round(shorter / 250))
    assert 9 <= text_size(*size) <= max(9, shorter / 20)


def test_a_label_can_be_read_on_anything():
    """White letters on a plate that is much darker, on white, black, grey and noise."""
    for background in (np.full((240, 320, 3), v, np.uint8) for v in (0, 90, 255)):
        drawn = background.copy()
        write_lines(drawn, ["tabby cat", "probability 0.93"], (0, 0), 20)
        plate = drawn[:50, :100].astype(int)
        assert plate.max() >= 250
        assert np.percentile(plate, 30) <= 0.36 * 255
        np.testing.assert_array_equal(drawn[80:], background[80:])


@pytest.mark.parametrize("name", ["café", "кошка", "γάτα", "猫", "ネコ", "고양이", "קט", "قط"])
@pytest.mark.skipif(not hasattr(cv2, "FontFace"), reason="OpenCV 4 has ASCII only")
def test_names_of_other_scripts(name):
    drawn = letters(name, 40)
    unknown = letters("?" * len(name), 40)
    assert drawn.any()
    assert drawn.shape != unknown.shape or (drawn != unknown).any()
    assert len({letters(one, 40).tobytes() for one in set(name)}) == len(set(name))


def test_without_fonts_names_are_written_in_ascii(monkeypatch):
    monkeypatch.delattr(cv2, "FontFace", raising=False)
    assert letters("café", 20).tobytes() == letters("cafe", 20).tobytes()
    assert letters("猫", 20).tobytes() == letters("?", 20).tobytes()
    with pytest.raises(UsageError, match=r"reads no font files.*opencv-python-headless>=5"):
        OverlayOptions(font="any.ttf")


def test_a_line_break_in_a_name_stays_in_its_line():
    assert letters("a\nb\tc\0d", 20).tobytes() == letters("a b c d", 20).tobytes()


def test_long_names_are_shortened():
    name = "a name that goes on and on " * 4
    cut = shortened(name, 150, 20)
    assert cut.endswith(("…", "..."))
    assert name.startswith(cut.rstrip("….").rstrip())
    assert letters(cut, 20).shape[1] <= 150
    assert shortened(name, 3, 20) == ""
    assert shortened("ab", 150, 20) == "ab"


def test_a_narrow_label_is_broken_at_commas():
    narrow, by_hand = (np.full((100, 100, 3), 255, np.uint8) for _ in range(2))
    write_lines(narrow, ["probability 0.93, evidence 0.25"], (0, 0), 9)
    write_lines(by_hand, ["probability 0.93", "evidence 0.25"], (0, 0), 9)
    np.testing.assert_array_equal(narrow, by_hand)


def test_the_legend_shows_the_colours_from_low_to_high():
    image = np.zeros((480, 640, 3), np.uint8)
    options = OverlayOptions(legend=True, colour_map="viridis")
    drawn = draw(image, np.zeros((480, 640), np.float32), whole(image), options)
    for value in (0, 255):
        rows, columns = np.nonzero((drawn == colours_of("viridis")[value]).all(2))
        assert len(rows), value
        assert columns.min() > 500
    low = np.nonzero((drawn == colours_of("viridis")[0]).all(2))[0].mean()
    high = np.nonzero((drawn == colours_of("viridis")[255]).all(2))[0].mean()
    assert high < low
    other = draw(image, np.zeros((480, 640), np.float32), whole(image),
                 OverlayOptions(legend=True, colour_map="viridis", cam_range=(-3, 17)))  # fmt: skip
    assert (other != drawn).any()


def test_blending_over_clear_pixels_keeps_the_colour():
    part = np.zeros((1, 1, 4), np.uint8)
    blend(part, (200, 100, 50), 0.5)
    np.testing.assert_array_equal(part, [[[200, 100, 50, 128]]])
    blend(part, (0, 0, 0), 0.5)
    # Over: 0.5 of black on what half covers, 0.75 opaque in all, a third of it the old colour.
    np.testing.assert_allclose(part, [[[67, 33, 17, 192]]], atol=1)


def test_every_colour_map_has_256_colours():
    for name in colour_maps():
        table = colours_of(name)
        assert table.shape == (256, 3)
        assert not table.flags.writeable
    # A diverging one is symmetric in lightness, lightest in the middle.
    lab = cv2.cvtColor(colours_of("blue-red")[None], cv2.COLOR_RGB2LAB)[0, :, 0].astype(int)
    assert lab[127] == lab.max()
    assert np.abs(lab - lab[::-1]).max() <= 8


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", -0.1), ("alpha", 1.1), ("alpha", np.nan), ("alpha", "0.5"), ("alpha", None),
        ("alpha", True), ("alpha", [0.5]), ("alpha", 10**400), ("opacity", "hard"),
        ("opacity", None), ("colour_map", "tubro"), ("colour_map", 3), ("colour_map", ["jet"]),
        ("contours", 0.5), ("contours", "0.5"), ("contours", (0,)), ("contours", (1,)),
        ("contours", (np.nan,)), ("contours", ("a",)), ("contours", {0.5}), ("boxes", 0),
        ("boxes", True), ("boxes", 1.5), ("label", "no"), ("label", 1), ("legend", None),
        ("background", "white"), ("cam_range", 3), ("cam_range", (1,)), ("cam_range", (1, 0)),
        ("cam_range", (1, 2, 3)),
        ("cam_range", (0, np.inf)), ("cam_range", (0, 0)), ("cam_range", "ab"),
        ("font", "missing.ttf"), ("font", b"a.ttf"), ("font", 3),
    ],
)  # fmt: skip
def test_bad_options(field, value):
    with pytest.raises(UsageError, match=field.replace("_", ".").rstrip("s")):
        OverlayOptions(**{field: value})


def test_a_file_that_is_no_font(tmp_path):
    (tmp_path / "a.ttf").write_bytes(b"not a font")
    with pytest.raises(UsageError, match=r"no font that can be read at .*a\.ttf; name a TrueType"):
        OverlayOptions(font=tmp_path / "a.ttf")
    assert str(tmp_path / "a.ttf") not in texts._faces


def test_options_are_values():
    one = OverlayOptions(contours=[0.5], cam_range=np.array([0, 2]), alpha=np.float32(0.5))
    assert one == OverlayOptions(contours=(0.5,), cam_range=(0.0, 2.0), alpha=0.5)
    assert hash(one) == hash(OverlayOptions(contours=(0.5,), cam_range=(0.0, 2.0), alpha=0.5))
