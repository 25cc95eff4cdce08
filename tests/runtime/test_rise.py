"""RISE against its definition, its masks, and what can be asked of it."""

import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.core.spec import ClassSelection, Preprocessing
from sigcam.runtime.multipass.rise import random_masks
from sigcam.runtime.session import load
from tests.support import oracle as reference
from tests.support.tiny import GRID, features_of, logits_of

SIDE = 56
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
BYTES = Preprocessing(SIDE, SIDE, "stretch", mean=MEAN, std=STD)
FLOATS = Preprocessing(SIDE, SIDE, "stretch", mean=(0, 0, 0), std=(1, 1, 1), layout="float32_nchw")
RNG = np.random.default_rng(8)
IMAGE = RNG.integers(0, 256, (7, 7, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
IDS = [2, 0, 3]
FEW = {"masks": 12, "cells": 5, "keep": 0.4, "seed": 3}


def masks_of(options, height=SIDE, width=SIDE):
    found = random_masks(height, width, options["cells"], options["keep"], options["seed"])
    return np.array([next(found) for _ in range(options["masks"])])


def truth(preprocessing, head, ids):
    """CAMs [K, H, W] by the definition, on the oracle's network."""

    def probability(one):
        seen = one if preprocessing is FLOATS else np.floor(255 * one + 0.5) / 255
        powers = np.exp(logits_of(features_of(seen), head, "softmax"))
        return (powers / powers.sum())[ids]

    centre = 0.0 if preprocessing is FLOATS else np.array(MEAN)[:, None, None]
    x = IMAGE.transpose(2, 0, 1) / 255
    return reference.rise(x, masks_of(FEW), probability, FEW["keep"], centre)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("preprocessing", [BYTES, FLOATS], ids=["bytes", "floats"])
@pytest.mark.parametrize("branch", ["sigmoid", "softmax"])
def test_equals_the_definition(make_artifact, head, preprocessing, branch):
    path = make_artifact(head=head, preprocessing=preprocessing, branch=branch)
    wanted = truth(preprocessing, head, IDS)
    with load(path, threads=1, batch_size=5) as session:
        results = session.explain(IMAGE, classes=IDS, method="rise", method_options=FEW)
    for class_id, result, cam in zip(IDS, results, wanted, strict=True):
        assert (result.class_id, result.method, result.passes) == (class_id, "rise", 13)
        assert result.cam.shape == (SIDE, SIDE)
        np.testing.assert_allclose(result.cam, cam, atol=2e-4 * cam.max())
        # The image has the input's size, so nothing is enlarged.
        scaled, valid = reference.min_max(cam)
        assert result.valid == valid
        np.testing.assert_allclose(result.heatmap, scaled, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"features": True},
        {"profile": "split"},
        {"classes": ClassSelection("top1")},
        {"classes": ClassSelection("topk", 2)},
        {"target_layers": ("a", "b"), "feature_shapes": ((3, GRID, GRID),) * 2},
    ],
    ids=str,
)
def test_any_artifact_will_do(make_artifact, options):
    if options.pop("features", False):
        options = {**options, "emit": {"features"}}
    path = make_artifact(head="mlp", preprocessing=FLOATS, **options)
    with load(path, threads=1) as session:
        [one] = session.explain(IMAGE, method="rise", method_options=FEW)
        [own] = session.explain(IMAGE)
    assert one.class_id == own.class_id
    wanted = truth(FLOATS, "mlp", [own.class_id])[0]
    np.testing.assert_allclose(one.cam, wanted, atol=2e-5 * wanted.max())


@pytest.mark.parametrize("batch_size", [1, 2, 12, 50])
def test_masks_follow_from_the_seed_on_any_batch_size(make_artifact, batch_size):
    path = make_artifact(head="mlp", preprocessing=FLOATS)
    found = {}
    for size in (batch_size, 5):
        with load(path, threads=1, batch_size=size) as session:
            for seed in (3, 4):
                results = session.explain(
                    [IMAGE, IMAGE[::-1]], method="rise", method_options={**FEW, "seed": seed}
                )
                found[size, seed] = np.array([one.cam for [one] in results])
    for seed in (3, 4):
        np.testing.assert_allclose(found[batch_size, seed], found[5, seed], atol=1e-6)
    assert np.abs(found[5, 3] - found[5, 4]).max() > 0.01


@pytest.mark.parametrize(
    ("height", "width", "cells"), [(56, 56, 7), (20, 33, 4), (8, 5, 5), (9, 9, 1)]
)
def test_masks_by_hand(height, width, cells):
    """The grid enlarged by the oracle to a cell more than the input, cut at the random place."""
    got = masks_of({"masks": 4, "cells": cells, "keep": 0.5, "seed": 11}, height, width)
    random = np.random.default_rng(11)
    tall, wide = int(np.ceil(height / cells)), int(np.ceil(width / cells))
    for mask in got:
        grid = (random.random((cells, cells)) < 0.5).astype(np.float64)
        y, x = random.integers(tall), random.integers(wide)
        whole = reference.upsample(grid, tall * (cells + 1), wide * (cells + 1))
        assert mask.shape == (height, width)
        np.testing.assert_allclose(mask, whole[y : y + height, x : x + width], atol=1e-6)


def test_masks_show_the_share_that_was_asked_for():
    for keep in (0.2, 0.5, 0.9):
        masks = masks_of({"masks": 400, "cells": 7, "keep": keep, "seed": 0})
        assert masks.mean() == pytest.approx(keep, abs=0.02)
        assert np.abs(masks.mean(0) - keep).max() < 0.12  # at no place more than at another


def test_the_map_lies_where_the_class_is(make_artifact):
    image = np.full((90, 120, 3), 20, np.uint8)
    image[50:80, 70:110, 0] = 250  # the tiny network's first class is red
    path = make_artifact(preprocessing=BYTES, weights=np.float32(20 * np.eye(4, 3)))
    with load(path, threads=1) as session:
        [one] = session.explain(image, classes=0, method="rise", method_options={"masks": 400})
    assert one.heatmap.shape == (90, 120)
    inside = one.heatmap[50:80, 70:110].mean()
    elsewhere = one.heatmap.copy()
    elsewhere[50:80, 70:110] = np.nan
    assert inside > np.nanmean(elsewhere) + 0.3
    y, x = np.unravel_index(one.heatmap.argmax(), one.heatmap.shape)
    assert 45 <= y <= 85
    assert 65 <= x <= 115


def test_progress_and_passes(make_artifact):
    calls = []
    with load(make_artifact(preprocessing=FLOATS), batch_size=5) as session:
        assert session.passes("rise") == 4001
        assert session.passes("rise", FEW) == 13
        session.explain(
            IMAGE, method="rise", method_options=FEW, progress=lambda *at: calls.append(at)
        )
    assert calls == [(1, 13), (6, 13), (11, 13), (13, 13)]


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("rise", {"masks": 0}, "masks must be a whole number from 1 to .*, got 0"),
        ("rise", {"masks": 2.5}, "masks must be a whole number"),
        ("rise", {"masks": float("nan")}, "masks must be a whole number"),
        ("rise", {"cells": 57}, "cells must be a whole number from 1 to 56, got 57"),
        ("rise", {"keep": 0}, "keep is the share of cells .* got 0"),
        ("rise", {"keep": 1}, "keep is the share"),
        ("rise", {"seed": -1}, "seed must be a whole number from 0"),
        ("rise", {"grid": 7}, "grid is no option of rise, which has masks, cells, keep, seed"),
        ("eigencam", {"seed": 1}, "seed is no option of eigencam; leave it out"),
        ("cam", {"seed": 1}, r"seed is no option of the artifact's own method.*\(rise\)"),
        (None, {"masks": 9}, "masks is no option of the artifact's own method"),
    ],
)
def test_options_that_cannot_be(make_artifact, method, options, says):
    with load(make_artifact(preprocessing=FLOATS, emit={"features"})) as session:
        with pytest.raises(UsageError, match=says):
            session.explain(IMAGE, method=method, method_options=options)
        with pytest.raises(UsageError, match=says):
            session.passes(method, options)


def test_further_classes_need_a_new_call(make_artifact):
    path = make_artifact(preprocessing=FLOATS, head_input="features")
    with load(path) as session:
        [one] = session.explain(IMAGE, method="rise", method_options=FEW)
        with pytest.raises(UsageError, match="rise runs the whole network many times"):
            one.for_classes([1])
