"""Launch planning: pure arithmetic."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigcam.kernels.arguments import Axis, whole
from sigcam.kernels.plan import ALIGNMENT, THREADS, WARP, plan
from sigcam.kernels.shapes import CHUNK_CHANNELS, Cams, Heatmaps, Inputs

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


cams_of_any_shape = st.builds(
    Cams,
    batch=st.integers(1, 64),
    classes=st.integers(1, 1000),
    height=st.integers(1, 128),
    width=st.integers(1, 128),
)


@given(inputs_of_any_shape, st.integers(1, 200), st.sampled_from([32, 64, 256, 512]))
def test_every_element_has_one_owner(inputs, processors, threads):
    planned = plan(inputs, heatmaps_for(inputs), processors=processors, threads=threads)
    f, launch = planned.fields, planned.combine
    vector, classes = (int(part[1:]) for part in launch.kernel.rsplit("_", 2)[1:])
    # A group is whole vectors, and its tiles cover it.
    assert f["group"] * inputs.positions == f["units"] * vector
    assert f["tiles"] * f["tile_units"] >= f["units"] > (f["tiles"] - 1) * f["tile_units"]
    assert f["group"] == 1 or f["tiles"] == 1
    # A vector goes over the end of one channel at most, and of none without the kernel for it.
    assert f["group"] == 1 or inputs.positions >= vector
    assert f["group"] == 1 or "odd" in launch.kernel or inputs.per_position
    # The chunks cover the channels; none is empty.
    channels = f["chunk_groups"] * f["group"]
    assert f["chunks"] * channels >= inputs.channels > (f["chunks"] - 1) * channels
    assert channels <= CHUNK_CHANNELS
    # The tiles cover the classes; none is empty.
    tiles = launch.grid[1]
    assert tiles * f["tile_classes"] >= inputs.classes > (tiles - 1) * f["tile_classes"]
    assert f["tile_classes"] <= classes
    # The block has a thread for each vector of each lane.
    assert 1 <= f["lanes"] * f["tile_units"] <= threads == launch.block
    assert launch.grid == (f["chunks"] * f["tiles"], tiles, inputs.batch)
    # Shared memory: weights, or the sums of four classes (two of vectors of 8), and the scratch
    # of the last block: a float for each thread, and two for each warp and class.
    assert launch.shared <= SHARED_LIMIT
    sums = f["lanes"] * f["tile_units"] * vector * min(classes, 16 // vector)
    staged = 0 if inputs.per_position else channels * classes
    scratch = max(threads, 2 * classes * threads // WARP)
    assert launch.shared >= 4 * (8 + max(sums, staged, scratch))
    # Reads of whole vectors are aligned in every image and class.
    if vector > 1:
        assert inputs.alignment == 16
        several = inputs.batch > 1 or (inputs.per_position and inputs.classes > 1)
        assert not several or inputs.channels * inputs.positions % vector == 0


@given(
    st.one_of(inputs_of_any_shape, cams_of_any_shape),
    st.integers(1, 200),
    st.sampled_from([32, 64, 256, 512]),
    st.sampled_from(["bilinear", "bicubic"]),
    st.booleans(),
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=3),
)
def test_every_pixel_has_a_thread(inputs, processors, threads, interpolation, bytes_, sizes):
    if len(sizes) == 1:
        heatmaps = heatmaps_for(inputs, *sizes[0], bytes_=bytes_, interpolation=interpolation)
    else:
        inputs = dataclasses.replace(inputs, batch=len(sizes))
        rows = [whole(height, inputs.height) for height, _ in sizes]
        axes = rows, [whole(width, inputs.width) for _, width in sizes]
        heatmaps = Heatmaps(*axes, bytes_=bytes_, interpolation=interpolation)
    planned = plan(inputs, heatmaps, processors=processors, threads=threads)
    strip = planned._heatmap.strip
    columns = 8 if bytes_ and interpolation == "bilinear" else 4
    count, down, across = planned.enlarge.grid
    assert count == inputs.batch * inputs.classes
    assert 16 <= strip <= 64
    assert across * 32 * columns >= max(width for _, width in sizes)
    assert down * strip * (planned.enlarge.block // WARP) >= max(height for height, _ in sizes)
    assert (planned.combine is None) == isinstance(inputs, Cams)
    assert (planned.extremes is None) == (
        interpolation == "bilinear" and isinstance(inputs, Inputs)
    )
    each = inputs.classes * sum(height * width for height, width in sizes)
    assert planned.pixels == (each if len(sizes) > 1 else each * inputs.batch)
    if len(sizes) > 1:
        starts = [place.start for place in planned.places]
        ends = [
            start + inputs.classes * height * width
            for start, (height, width) in zip(starts, sizes, strict=True)
        ]
        assert [0, *ends] == [*starts, planned.pixels]


@given(
    st.one_of(inputs_of_any_shape, cams_of_any_shape),
    st.sampled_from(["bilinear", "bicubic"]),
    st.booleans(),
)
def test_parts_of_the_workspace_do_not_overlap(inputs, interpolation, ragged):
    heatmaps = heatmaps_for(inputs, interpolation=interpolation)
    if ragged:
        several = [heatmaps.rows] * inputs.batch, [heatmaps.columns] * inputs.batch
        heatmaps = Heatmaps(*several, interpolation=interpolation)
    planned = plan(inputs, heatmaps, processors=84)
    w, count = planned.workspace, inputs.batch * inputs.classes
    assert w.arrived == 0
    starts = (w.arrived, w.cams, w.bounds, w.partial, w.places, w.size)
    assert all(at % ALIGNMENT == 0 for at in starts)
    needed = 0
    if planned.extremes is not None:
        assert planned.extremes.grid[0] == count
        needed = 4 * count
        assert w.places - w.partial >= 12 * count * planned.extremes.grid[1]
    if planned.combine is not None:
        needed = max(needed, 4 * planned.combine.grid[1] * inputs.batch)
        assert w.bounds >= w.cams + 4 * count * inputs.positions
        assert w.places >= w.partial + 4 * count * planned.fields["chunks"] * inputs.positions
    assert w.counters >= needed
    assert w.cams >= w.arrived + w.counters
    assert w.partial >= w.bounds + 8 * count
    assert w.size >= w.places + (56 * inputs.batch if ragged else 0)


def test_plans_for_several_sizes_share_a_workspace():
    inputs = Inputs(2, 512, 7, 7, 5)
    for interpolation in ("bilinear", "bicubic"):
        found = {
            plan(
                inputs,
                Heatmaps(
                    [whole(n, 7), whole(9, 7)], [whole(31, 7), whole(n, 7)], False, interpolation
                ),
                processors=84,
            ).workspace
            for n in (8, 224, 5000)
        }
        assert len(found) == 1


def test_kernels_by_type_and_shape():
    def kernel(**changes):
        inputs = dataclasses.replace(Inputs(1, 2048, 7, 7, 1), **changes)
        return plan(inputs, heatmaps_for(inputs), processors=84).combine.kernel

    assert kernel() == "combine_odd_f32_v4_k1"
    assert kernel(height=14, width=14) == "combine_f32_v4_k1"
    assert kernel(half=True, classes=3) == "combine_odd_f16_v8_k4"
    assert kernel(per_position=True) == "combine_positions_f32_v4_k1"
    assert kernel(alignment=8) == "combine_f32_v1_k1"
    # The second image would begin between two vectors.
    assert kernel(channels=2047) == "combine_odd_f32_v4_k1"
    assert kernel(channels=2047, batch=2) == "combine_f32_v1_k1"
    assert kernel(channels=2047, classes=2, per_position=True) == "combine_positions_f32_v1_k4"
    # An odd CAM of more vectors than threads can't be read in groups.
    assert kernel(height=17, width=17) == "combine_f32_v1_k1"
    assert kernel(height=56, width=56) == "combine_f32_v4_k1"
    # Vectors of more elements than a channel has positions.
    assert kernel(height=1, width=3) == "combine_f32_v1_k1"
    assert kernel(height=1, width=7, half=True) == "combine_f16_v1_k1"


def test_pixels_are_stored_together_where_the_address_allows_it():
    inputs = Inputs(1, 8, 7, 7, 1)

    def aligned(**options):
        return plan(inputs, heatmaps_for(inputs, **options), processors=1)._heatmap.aligned

    assert aligned()
    assert not aligned(alignment=8)
    assert aligned(alignment=8, bytes_=True)
    assert not aligned(alignment=4, bytes_=True)
    assert aligned(alignment=4, bytes_=True, interpolation="bicubic")
    assert not aligned(alignment=2, bytes_=True, interpolation="bicubic")


def test_a_tail_is_no_longer_than_what_comes_before_it():
    """The last block reads as many partial sums as a block has read features, or fewer."""
    for classes in (1, 5, 8):
        inputs = Inputs(1, 2048, 14, 14, classes)
        f = plan(inputs, heatmaps_for(inputs), processors=132).fields
        assert f["chunks"] * f["tile_classes"] <= f["chunk_groups"] * f["group"]
    assert f["tile_classes"] == 4
    # Five classes are three and two, not four and one.
    inputs = Inputs(1, 2048, 14, 14, 5)
    planned = plan(inputs, heatmaps_for(inputs), processors=132)
    assert (planned.combine.grid[1], planned.fields["tile_classes"]) == (2, 3)


def test_few_heatmaps_have_short_strips():
    def strip(classes, *size):
        inputs = Inputs(8, 512, 7, 7, classes)
        return plan(inputs, heatmaps_for(inputs, *size), processors=132)._heatmap.strip

    assert strip(1) == 16
    assert strip(5, 480, 640) == 45
    assert strip(100, 480, 640) == 64


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
    assert (heatmaps.heatmaps, heatmaps.valid, heatmaps.classes, heatmaps.aligned) == (
        4800, 4001, 3, 1,
    )  # fmt: skip
    assert combine.cams == heatmaps.cams == (1 << 20) + w.cams
    assert combine.bounds == heatmaps.bounds == (1 << 20) + w.bounds
    assert combine.partial == (1 << 20) + w.partial
    assert combine.places is None
    assert (combine.channels, combine.positions, combine.classes) == (30, 20, 3)
    assert (combine.clamp, combine.bilinear) == (0, 1)
    assert (heatmaps.place.rows.size, heatmaps.place.columns.size) == (20, 31)
    assert (combine.place.rows.cells, combine.place.columns.cells) == (5, 4)
    assert combine.tile_units * combine.lanes <= THREADS
    # The plan's own stay without addresses: another call makes others.
    again, _ = planned.arguments(features=16, weights=32, heatmaps=48, valid=1, workspace=0)
    assert (combine.features, again.features) == (1600, 16)


def test_arguments_of_cams_and_of_places():
    given = Cams(2, 3, 5, 4)
    rows, columns = [whole(20, 5), whole(7, 5)], [whole(31, 4), whole(8, 4)]
    planned = plan(given, Heatmaps(rows, columns), processors=2)
    where = {"cams": 4, "heatmaps": 4800, "valid": 1, "workspace": 1 << 20}
    combine, heatmaps = planned.arguments(**where)
    assert combine is None
    assert [launch.kernel for launch, _ in planned.launches(combine, heatmaps)] == [
        "extremes_bilinear", "enlarge_bilinear_f32",
    ]  # fmt: skip
    assert (heatmaps.cams, heatmaps.places) == (4, (1 << 20) + planned.workspace.places)
    with pytest.raises(ValueError, match="places must lie at a multiple of 8, got 0x204"):
        planned.arguments(**where, places=516)
    _, heatmaps = planned.arguments(**where, places=512)
    assert heatmaps.places == 512


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Inputs(0, 1, 1, 1, 1), "batch must be at least 1"),
        (lambda: Inputs(70000, 1, 1, 1, 1), "split the batch"),
        (lambda: Inputs(1, 1, 5000, 5000, 1), "at most 4194303 positions"),
        (
            lambda: plan(
                Inputs(1, 1, 2, 2, 1), Heatmaps(whole(5_000_000, 2), whole(5, 2)), processors=1
            ),
            "of 2097120 x 8388480 pixels fit one launch, got 1 of 5000000 x 5",
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
                Inputs(3, 1, 2, 2, 1), Heatmaps([whole(5, 2)] * 2, [whole(5, 2)] * 2), processors=1
            ),
            "axes for 2 images, and 3 images",
        ),
        (lambda: Heatmaps([whole(5, 2)], whole(5, 2)), "both be one axis, or one for each"),
        (lambda: Heatmaps([whole(5, 2)] * 2, [whole(5, 2)]).axes(), "rows are for 2 images"),
        (
            lambda: Heatmaps([whole(5, 2), Axis(5, 3, 3, 2, 1, 0)], [whole(5, 2)] * 2),
            "the rows must have",
        ),
        (lambda: Cams(1, 0, 2, 2), "classes must be at least 1"),
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
