"""Constant matrices against PyTorch's operators, which are applied to the identity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 (its usual name)

from sigcam.export.backward import matrices

LENGTHS = (1, 5, 7, 8)


def matrix_of(f, length):
    """[out, in] of a linear operator on [1, N, L]."""
    return f(torch.eye(length, dtype=torch.float64)[None])[0].T.numpy()


def along_rows(f):
    """An operator on images as one on signals."""
    return lambda x: f(x[..., None])[..., 0]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("out", [1, 2, 3, 7, 10])
def test_resizing_to_a_size(length, out):
    mean = matrix_of(lambda x: F.adaptive_avg_pool1d(x, out), length)
    np.testing.assert_allclose(matrices.adaptive_mean(length, out), mean, atol=1e-12)
    for align in (False, True):
        linear = matrix_of(
            lambda x, a=align: F.interpolate(x, out, mode="linear", align_corners=a), length
        )
        cubic = matrix_of(
            along_rows(
                lambda x, a=align: F.interpolate(x, (out, 1), mode="bicubic", align_corners=a)
            ),
            length,
        )
        np.testing.assert_allclose(matrices.linear(length, out, align, None), linear, atol=1e-12)
        np.testing.assert_allclose(matrices.cubic(length, out, align, None), cubic, atol=1e-12)
    for mode, half in (("nearest", 0.0), ("nearest-exact", 0.5)):
        wanted = matrix_of(lambda x, m=mode: F.interpolate(x, out, mode=m), length)
        np.testing.assert_array_equal(matrices.nearest(length, out, None, half), wanted)


@pytest.mark.parametrize("length", [5, 7, 8])
@pytest.mark.parametrize("scale", [0.6, 1.7, 2.5])
def test_resizing_by_a_factor(length, scale):
    linear = matrix_of(lambda x: F.interpolate(x, scale_factor=scale, mode="linear"), length)
    nearest = matrix_of(lambda x: F.interpolate(x, scale_factor=scale, mode="nearest"), length)
    out = len(linear)
    np.testing.assert_allclose(matrices.linear(length, out, False, scale), linear, atol=1e-12)
    np.testing.assert_array_equal(matrices.nearest(length, out, scale), nearest)


@pytest.mark.parametrize("length", [5, 7, 8])
@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_means_of_windows(length, kernel, stride):
    for padding in range(kernel // 2 + 1):
        for ceil_mode in (False, True):
            for count in (False, True):
                args = (kernel, stride, padding)
                wanted = matrix_of(
                    lambda x, a=args, c=ceil_mode, n=count: F.avg_pool1d(x, *a, c, n), length
                )
                found = matrices.mean(length, len(wanted), *args, count)
                np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_padding_copies_cells():
    for mode, name in ((matrices.reflected, "reflect"), (matrices.replicated, "replicate")):
        wanted = matrix_of(lambda x, n=name: F.pad(x, (2, 3), mode=n), 5)
        np.testing.assert_array_equal(matrices.padded(5, 2, 3, mode), wanted)


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_cells_in_the_padding_become_real_cells_of_the_same_window(dilation):
    index = matrices.windows(9, 3, 1, 1, dilation)[: 8 - 2 * (dilation - 1)]
    inside = matrices.inside(index, 8, dilation)
    for before, after in zip(index, inside, strict=True):
        real = {cell for cell in before.tolist() if 0 <= cell < 8}
        assert set(after.tolist()) == real
