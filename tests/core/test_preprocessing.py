"""How many channels an input has, and which values: what a Preprocessing takes and refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sigcam.core.errors import UsageError
from sigcam.core.spec import Preprocessing
from sigcam.images.preprocess import place
from tests.support.tiny import tiny_spec


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("scale", [255, 65535, 1, 0.5])
def test_it_survives_json(channels, scale):
    made = Preprocessing(320, 640, mean=[0.5] * channels, std=[2] * channels, scale=scale)
    spec = tiny_spec(preprocessing=made)
    assert type(spec).from_json(spec.to_json()) == spec
    assert made.channels == channels
    assert made.takes_bytes == (scale == 255)
    assert made.layout == ("uint8_nhwc" if scale == 255 else "float32_nhwc")
    normalised = replace(made, layout="float32_nchw")
    assert normalised.raw == made
    assert hash(normalised.raw) == hash(made)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": ()}, "one per channel"),
        ({"mean": (0.5,)}, "got 1 and 3; give both"),
        ({"std": (0.5,) * 4}, "got 3 and 4; give both"),
        ({"mean": (float("nan"),) * 3}, "finite"),
        ({"std": (0.5, 0.0, 0.5)}, "above 0"),
        ({"scale": 0}, "scale"),
        ({"scale": -1}, "scale"),
        ({"scale": float("inf")}, "scale"),
        ({"scale": 1, "layout": "uint8_nhwc"}, "float32_nhwc"),
        ({"layout": "float32_nhwc"}, "uint8_nhwc"),
        ({"layout": "nchw"}, "must be one of"),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Preprocessing(**values)


@pytest.mark.parametrize(
    ("preprocessing", "size", "box"),
    [
        # An image of the input's shape is seen whole, without a margin.
        (Preprocessing(32, 64), (100, 200), (0, 0, 200, 100)),
        (Preprocessing(64, 32), (200, 100), (0, 0, 100, 200)),
        # A square loses what the shape asks for, and no more.
        (Preprocessing(32, 64), (200, 200), (0, 50, 200, 150)),
        (Preprocessing(64, 32), (200, 200), (50, 0, 150, 200)),
        # A margin of 1 / 2 on each side's length.
        (Preprocessing(32, 64, resize=64), (100, 200), (50, 25, 150, 75)),
        (Preprocessing(32, 64, resize=40), (100, 100), (0, 25, 100, 75)),
        (Preprocessing(48, 48, resize=64), (96, 96), (12, 12, 84, 84)),
    ],
)
def test_the_crop_of_an_input_that_is_not_square(preprocessing, size, box):
    assert place(preprocessing, *size).crop_box == box
