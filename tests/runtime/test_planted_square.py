"""A bright square planted in an image comes back where it was planted."""

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sigcam.core.spec import Preprocessing
from sigcam.images.preprocess import place
from sigcam.runtime.session import load

GEOMETRIES = {
    "crop": Preprocessing(56, 56, "crop", 64),
    "stretch": Preprocessing(56, 56, "stretch"),
    "letterbox": Preprocessing(56, 56, "letterbox", mean=(0, 0, 0)),
}


@pytest.fixture(scope="module")
def sessions(make_artifact):
    opened = {
        rule: load(make_artifact(preprocessing=preprocessing), threads=1)
        for rule, preprocessing in GEOMETRIES.items()
    }
    yield opened
    for session in opened.values():
        session.close()


def plant(axis, share):
    """Where to put a square about as long as a CAM cell: first, end, cell length."""
    cell = axis.length / 7 * axis.used / axis.shown
    side = max(1, round(cell))
    low, high = axis.low, axis.high
    assume(high - low >= side)
    first = low + round(share * (high - low - side))
    return first, first + side, cell


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(16, 500),
    width=st.integers(16, 500),
    rule=st.sampled_from(list(GEOMETRIES)),
    orientation=st.integers(1, 8),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
@example(height=16, width=1500, rule="crop", orientation=6, shares=(0.0, 1.0))
@example(height=1500, width=16, rule="crop", orientation=5, shares=(1.0, 0.0))
@example(height=480, width=640, rule="crop", orientation=8, shares=(0.0, 0.0))
def test_the_square_comes_back(sessions, jpeg, stored, height, width, rule, orientation, shares):
    placement = place(GEOMETRIES[rule], height, width)
    y0, y1, cell_y = plant(placement.rows, shares[0])
    x0, x1, cell_x = plant(placement.columns, shares[1])
    image = np.zeros((height, width, 3), np.uint8)
    image[y0:y1, x0:x1] = 255
    data = jpeg(stored(image, orientation), orientation)

    [found] = sessions[rule].explain(data, classes="red")
    assert found.image.shape == image.shape
    assert found.valid
    # The middle of the hottest pixels: several may share the maximum.
    ys, xs = np.where(found.heatmap >= 0.999)
    assert abs(ys.mean() + 0.5 - (y0 + y1) / 2) <= cell_y
    assert abs(xs.mean() + 0.5 - (x0 + x1) / 2) <= cell_x
    # The strongest box holds the middle of the square, give or take a cell.
    box = found.boxes(0.5)[0]
    assert box.x0 - cell_x <= (x0 + x1) / 2 <= box.x1 + cell_x
    assert box.y0 - cell_y <= (y0 + y1) / 2 <= box.y1 + cell_y
