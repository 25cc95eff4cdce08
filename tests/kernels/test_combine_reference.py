import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigcam.kernels.reference import clamp_combine


def loops(features, weights, clamp):
    B, N, h, w = features.shape
    out = np.zeros((B, weights.shape[1], h, w))
    for b, k, y, x in np.ndindex(out.shape):
        total = 0.0
        for n in range(N):
            weight = float(weights[b, k, n] if weights.ndim == 3 else weights[b, k, n, y, x])
            total += (max(weight, 0.0) if clamp else weight) * float(features[b, n, y, x])
        out[b, k, y, x] = max(total, 0.0)
    return out


@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 5),
    clamp=st.booleans(),
    per_position=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_definition(sizes, clamp, per_position, seed):
    B, K, N, h, w = sizes
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((B, N, h, w)).astype(np.float32)
    shape = (B, K, N, h, w) if per_position else (B, K, N)
    weights = rng.standard_normal(shape).astype(np.float32)
    before = features.copy(), weights.copy()
    got = clamp_combine(features, weights, clamp)
    assert got.dtype == np.float32
    assert got.shape == (B, K, h, w)
    np.testing.assert_allclose(got, loops(features, weights, clamp), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(features, before[0])
    np.testing.assert_array_equal(weights, before[1])


def test_signed_sums_are_left_as_they_are():
    features = np.array([[[[1.0]], [[2.0]]]], np.float32)
    weights = np.array([[[0.5, -1.0]]], np.float32)
    assert clamp_combine(features, weights, clamp=False).item() == 0
    assert clamp_combine(features, weights, clamp=False, signed=True).item() == -1.5
    assert clamp_combine(features, weights, signed=True).item() == 0.5


def test_clamping_changes_the_cam():
    features = np.array([[[[1.0]], [[1.0]]]], np.float32)
    weights = np.array([[[2.0, -1.5]]], np.float32)
    assert clamp_combine(features, weights).item() == 2.0
    assert clamp_combine(features, weights, clamp=False).item() == 0.5


def test_a_nan_stays_a_nan():
    features = np.full((1, 1, 1, 1), np.nan, np.float32)
    assert np.isnan(clamp_combine(features, np.ones((1, 1, 1), np.float32))).all()


@pytest.mark.parametrize(
    ("features", "weights", "message"),
    [
        ((1, 2, 3), (1, 1, 2), "features must be"),
        ((1, 2, 3, 3), (1, 1, 3), "weights must be"),
        ((2, 2, 3, 3), (1, 1, 2), "weights must be"),
        ((1, 2, 3, 3), (1, 1, 2, 3), "weights must be"),
        ((1, 2, 3, 3), (1, 1, 2, 3, 4), "must end in"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(features, weights, message):
    with pytest.raises(ValueError, match=message):
        clamp_combine(np.zeros(features, np.float32), np.zeros(weights, np.float32))


def test_another_dtype_is_refused():
    with pytest.raises(ValueError, match="weights must be float32, got float64"):
        clamp_combine(np.zeros((1, 1, 1, 1), np.float32), np.zeros((1, 1, 1)))
