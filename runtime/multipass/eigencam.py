"""Eigen-CAM: what the features have most in common, whatever the class."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from sigcam.core.progress import Report
from sigcam.core.types import Array
from sigcam.runtime.multipass.base import MultiPass, Subject

_TILE = 64
"""Side of the products' blocks: 64^3 = 2^18 multiplications, up to which OpenBLAS stays in
the calling thread (see `sigcam.images.upsample`). For the same reason no LAPACK: beside ONNX
Runtime's spinning threads `eigh` of 49 x 49 took 31 ms instead of 0.2 on two cores."""

_ROUNDS = 50
_CONVERGED = 1e-12


class EigenCam(MultiPass):
    """Eigen-CAM of Muhammad and Yeasin (2020): the features' first principal component.

    A [h w, N] holds the features, a row for each position. With A = U S V^T, the heatmap is
    A v_1, the projection onto the first right singular vector; cam = max(0, A v_1). The
    features are not centred, as in the paper. (The package grad-cam subtracts each
    channel's mean before: another heatmap, whose sign is left to chance.)

    A v_1 is the same up to its sign, which is chosen so that its product with the mean of
    the features over the channels is positive. Features without negative values (after a
    ReLU) give a heatmap without negative values.

    The heatmap doesn't depend on the class: it is the same for all that are asked for. Clamping
    (NWC) means the weights of a class, so it isn't applied to v_1.

    Passes: one over the network.
    """

    name: ClassVar[str] = "eigencam"
    class_agnostic: ClassVar[bool] = True

    @property
    def most_passes(self) -> int:
        """Returns 1."""
        return 1

    def cams(self, subject: Subject, report: Report) -> tuple[Array, int]:
        """Makes the CAMs; see `MultiPass.cams`."""
        features = subject.features
        channels = features.reshape(len(features), -1).astype(np.float64)
        cam = np.maximum(_projection(channels), 0).astype(np.float32)
        report(1, 1)
        shape = (len(subject.class_ids), *features.shape[1:])
        return np.broadcast_to(cam.reshape(features.shape[1:]), shape), 1


def _projection(channels: Array) -> Array:
    """Computes A v_1 of A = channels^T, float64 [h w], for float64 [N, h w].

    From the eigenvectors of the smaller of A A^T = U S^2 U^T, where A v_1 = s_1 u_1, and
    A^T A = V S^2 V^T.
    """
    count, positions = channels.shape
    if positions <= count:
        product = _gram(channels.T)
        vector = _first_eigenvector(product)
        squared = float(_times(product, vector) @ vector)
        found = math.sqrt(max(squared, 0.0)) * vector
    else:
        found = _times(channels.T, _first_eigenvector(_gram(channels)))
    mean = channels.mean(axis=0)
    sign = float((found * mean).sum())
    if sign == 0:  # no side is the features' side: the farther reaching one
        sign = float(found[np.abs(found).argmax()])
    return np.asarray(-found if sign < 0 else found)


def _gram(rows: Array) -> Array:
    """Computes the product rows @ rows^T, in blocks."""
    count, length = rows.shape
    out = np.zeros((count, count))
    for i in range(0, count, _TILE):
        for j in range(0, i + 1, _TILE):
            block = out[i : i + _TILE, j : j + _TILE]
            for k in range(0, length, _TILE):
                part = slice(k, k + _TILE)
                block += rows[i : i + _TILE, part] @ rows[j : j + _TILE, part].T
            out[j : j + _TILE, i : i + _TILE] = block.T
    return out


def _times(matrix: Array, vector: Array) -> Array:
    return np.asarray(np.einsum("ij,j->i", matrix, vector))


def _first_eigenvector(matrix: Array) -> Array:
    """Finds the eigenvector of the largest eigenvalue of a positive semidefinite matrix.

    Up to 64 x 64 by squaring: of M^(2^r), scaled, only the first is left. Larger ones are
    projected onto a Krylov space of that size first, which is built again from the vector
    found until the vector stays (Lanczos with full orthogonalisation).
    """
    size = len(matrix)
    if size <= _TILE:
        return _by_squaring(matrix)
    # Any start but one orthogonal to the vector sought; this one is the same every time.
    start = np.random.default_rng(0).standard_normal(size)
    for _ in range(_ROUNDS):
        basis = _krylov_basis(matrix, start)
        images = np.stack([_times(matrix, row) for row in basis])
        inner = np.einsum("im,jm->ij", basis, images)
        vector = _times(basis.T, _by_squaring((inner + inner.T) / 2))
        image = _times(matrix, vector)
        value = image @ vector
        start = vector
        if np.linalg.norm(image - value * vector) <= _CONVERGED * value:
            break
    return start


def _krylov_basis(matrix: Array, start: Array) -> Array:
    """Builds orthonormal rows that span start, M start, M^2 start, ...; at most 64."""
    basis = np.zeros((_TILE, len(matrix)))
    rest, scale = start, 0.0
    for row in range(_TILE):
        length = float(np.linalg.norm(rest))
        if length <= _CONVERGED * scale or length == 0:
            return basis[:row]
        basis[row] = rest / length
        rest = _times(matrix, basis[row])
        scale = float(np.linalg.norm(rest))
        for _ in range(2):  # once leaves rounding errors behind
            rest = rest - _times(basis[: row + 1].T, _times(basis[: row + 1], rest))
    return basis


def _by_squaring(matrix: Array) -> Array:
    """Finds the first eigenvector of a positive semidefinite matrix of at most 64 x 64."""
    trace = np.trace(matrix)
    if not trace > 0:
        return np.zeros(len(matrix))
    power = matrix / trace
    for _ in range(_ROUNDS):
        power = power @ power
        trace = np.trace(power)
        power /= trace
        if trace > 1 - 1e-15:  # of the squares of eigenvalues that add up to 1
            break
    vector = power[np.diagonal(power).argmax()]
    return np.asarray(vector / np.linalg.norm(vector))
