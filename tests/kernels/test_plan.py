"""Launch planning: pure arithmetic."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigcam.kernels.arguments import Axis, whole
from sigcam.kernels.plan import (
    ALIGNMENT,
    CHUNK_CHANNELS,
    CLASS_TILE,
    THREADS,
    WARP,
    Heatmaps,
    Inputs,
    plan,
)

SHARED_LIMIT = 48 * 1024  # bytes that a block gets without asking


def heatmaps_for(inputs, height=224, width=224, **options):
    return Heatmaps(whole(height, inputs.height), whole(width, inputs.width), **options)


inputs_of_any_shape = st.builds(
    Inputs,
    batch=st.integers(1, 64),
    channels=st.integers(1, 4096),
    height=st.integers(1, 128),
    width=st.integers(1, 128),
    classes=st.integers(1, 1000),
    half=st.booleans(),
    per_position=st.booleans(),
    clamp=st.booleans(),
    alignment=st.sampled_from([2, 4, 8, 16]),
)


@given(
    inputs_of_any_shape,
    st.integers(1, 200),
    st.sampled_from([32, 64, 256, 512]),
    st.sampled_from(["bilinear", "bicubic"]),
    st.booleans(),
)
def test_every_element_has_one_owner(inputs, processors, threads, interpolation, bytes_):
    heatmaps = heatmaps_for(inputs, 60, 97, interpolation=interpolation, bytes_=bytes_)
    planned = plan(inputs, heatmaps, processors=processors, threads=threads)
    f, launch = planned.fields, planned.combine
    vector, classes = (int(part[1:]) for part in launch.kernel.rsplit("_", 2)[1:])
    # A group is whole vectors, and its tiles cover it.
    assert f["group"] * inputs.positions == f["units"] * vector
    assert f["tiles"] * f["tile_units"] >= f["units"] > (f["tiles"] - 1) * f["tile_units"]
    assert f["group"] == 1 or f["tiles"] == 1
    # The chunks cover the channels; none is empty.
    channels = f["chunk_groups"] * f["group"]
    assert f["chunks"] * channels >= inputs.channels > (f["chunks"] - 1) * channels
    assert channels <= CHUNK_CHANNELS
    # The block has a thread for each vector of each lane.
    assert 1 <= f["lanes"] * f["tile_units"] <= threads == launch.block
    assert launch.grid == (f["chunks"] * f["tiles"], -(-inputs.classes // classes), inputs.batch)
    assert launch.shared <= SHARED_LIMIT
    # Reads of whole vectors are aligned in every image and class.
    if vector > 1:
        assert inputs.alignment == 16
        several = inputs.batch > 1 or (inputs.per_position and inputs.classes > 1)
        assert not several or inputs.channels * inputs.positions % vector == 0
    # Heatmaps: every pixel has a thread.
    columns, rows, count = planned.enlarge.grid
    assert columns * 128 >= 97
    assert rows * (threads // WARP) >= 60
    assert count == min(inputs.batch * inputs.classes, 65535)
    assert (planned.extremes is None) == (interpolation == "bilinear")


@given(inputs_of_any_shape, st.sampled_from(["bilinear", "bicubic"]))
def test_parts_of_the_workspace_do_not_overlap(inputs, interpolation):
    planned = plan(inputs, heatmaps_for(inputs, interpolation=interpolation), processors=84)
    w, count = planned.workspace, inputs.batch * inputs.classes
    assert w.arrived == 0
    assert all(at % ALIGNMENT == 0 for at in (w.arrived, w.cams, w.bounds, w.partial, w.size))
    needed = 4 * planned.combine.grid[1] * inputs.batch
    if planned.extremes is not None:
        assert planned.extremes.grid[0] == count
        needed = max(needed, 4 * count)
        assert w.size - w.partial >= 8 * count * planned.extremes.grid[1]
    assert w.counters >= needed
    assert w.cams >= w.arrived + w.counters
    assert w.bounds >= w.cams + 4 * count * inputs.positions
    assert w.partial >= w.bounds + 8 * count
    assert w.size >= w.partial + 4 * count * planned.fields["chunks"] * inputs.positions


def test_kernels_by_type_and_shape():
    def kernel(**changes):
        inputs = dataclasses.replace(Inputs(1, 2048, 7, 7, 1), **changes)
        return plan(inputs, heatmaps_for(inputs), processors=84).combine.kernel

    assert kernel() == "combine_f32_v4_k1"
    assert kernel(half=True, classes=3) == "combine_f16_v8_k4"
    assert kernel(per_position=True) == "combine_positions_f32_v4_k1"
    assert kernel(alignment=8) == "combine_f32_v1_k1"
    # The second image would begin between two vectors.
    assert kernel(channels=2047) == "combine_f32_v4_k1"
    assert kernel(channels=2047, batch=2) == "combine_f32_v1_k1"
    assert kernel(channels=2047, classes=2, per_position=True) == "combine_positions_f32_v1_k4"
    # An odd CAM of more vectors than threads can't be read in groups.
    assert kernel(height=17, width=17) == "combine_f32_v1_k1"
    assert kernel(height=56, width=56) == "combine_f32_v4_k1"


def test_pixels_are_stored_together_where_rows_allow_it():
    inputs = Inputs(1, 8, 7, 7, 1)

    def vectors(width, **options):
        return plan(inputs, heatmaps_for(inputs, 10, width, **options), processors=1).vectors

    assert vectors(224)
    assert not vectors(225)
    assert not vectors(224, alignment=8)
    assert vectors(224, alignment=4, bytes_=True)


def test_a_small_gpu_gets_fewer_blocks_with_more_work():
    inputs = Inputs(1, 2048, 14, 14, 1)
    few, many = (plan(inputs, heatmaps_for(inputs), processors=n).fields for n in (4, 132))
    assert few["chunks"] < many["chunks"]
    assert few["chunk_groups"] > many["chunk_groups"]


def test_arguments():
    inputs = Inputs(2, 30, 5, 4, 3, clamp=False)
    planned = plan(inputs, heatmaps_for(inputs, 20, 31, bytes_=True), processors=2)
    w = planned.workspace
    combine, heatmaps = planned.arguments(
        features=1600, weights=3200, heatmaps=4800, valid=4001, workspace=1 << 20
    )
    assert (combine.features, combine.weights, combine.valid) == (1600, 3200, 4001)
    assert (heatmaps.heatmaps, heatmaps.valid, heatmaps.count, heatmaps.vectors) == (
        4800,
        4001,
        6,
        0,
    )
    assert combine.cams == heatmaps.cams == (1 << 20) + w.cams
    assert combine.bounds == heatmaps.bounds == (1 << 20) + w.bounds
    assert combine.partial == (1 << 20) + w.partial
    assert (combine.channels, combine.positions, combine.classes) == (30, 20, 3)
    assert (combine.clamp, combine.bilinear) == (0, 1)
    assert (heatmaps.rows.size, heatmaps.columns.size) == (20, 31)
    assert (combine.rows.cells, combine.columns.cells) == (5, 4)
    assert CLASS_TILE >= 3
    assert combine.tile_units * combine.lanes <= THREADS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Inputs(0, 1, 1, 1, 1), "batch must be at least 1"),
        (lambda: Inputs(70000, 1, 1, 1, 1), "split the batch"),
        (lambda: Inputs(1, 1, 5000, 5000, 1), "at most 4194303 positions"),
        (
            lambda: plan(
                Inputs(1, 1, 2, 2, 1), Heatmaps(whole(600_000, 2), whole(5, 2)), processors=1
            ),
            "of 524280 rows fit one launch, got 1 of 600000",
        ),
        (
            lambda: plan(
                Inputs(1, 1, 2, 2, 1), Heatmaps(whole(5, 2), whole(5, 2)), processors=1
            ).arguments(features=256, weights=264, heatmaps=0, valid=0, workspace=0),
            "weights was planned for addresses that are multiples of 16, got 0x108",
        ),
        (lambda: Heatmaps(Axis(5, 3, 3, 2, 1, 0), whole(5, 2)), "the rows must have"),
        (lambda: Heatmaps(whole(5, 2), Axis(5, 0, 6, 2, 1, 0)), "the columns must have"),
        (lambda: Heatmaps(whole(5, 2), Axis(5, 0, 5, 2, 0, 0)), "a scale above 0"),
        (
            lambda: plan(Inputs(1, 1, 2, 3, 1), Heatmaps(whole(5, 2), whole(5, 2)), processors=1),
            "for a CAM of 2 x 2, the features have 2 x 3",
        ),
        (
            lambda: plan(
                Inputs(1, 1, 2, 2, 1), Heatmaps(whole(5, 2), whole(5, 2)), processors=1, threads=48
            ),
            "a multiple of 32",
        ),
    ],
)
def test_what_cannot_be_planned(make, message):
    with pytest.raises(ValueError, match=message):
        make()
