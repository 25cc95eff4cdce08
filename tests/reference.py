"""The definitions, in plain and slow NumPy, float64. Everything else must match these.

Arrays: features F [B, N, h, w], weight matrix W [C, N], bias b [C], logits [B, C],
class ids [B, K], CAM weights w [B, K, N], grid [h, w].
"""

from __future__ import annotations

import math

import numpy as np


def global_average_pool(F):
    """[B, N, h, w] to [B, N]."""
    B, N, h, w = F.shape
    pooled = np.zeros((B, N))
    for i in range(h):
        for j in range(w):
            pooled += F[:, :, i, j].astype(np.float64)
    return pooled / (h * w)


def linear(pooled, W, b):
    """[B, N] to [B, C]."""
    out = np.zeros((len(pooled), len(W)))
    for c in range(len(W)):
        out[:, c] = (pooled * W[c].astype(np.float64)).sum(axis=1) + float(b[c])
    return out


def top_k(logits, k):
    """Ids of the k largest, the largest first, the lower id first among equals: [B, k]."""
    rows = [sorted(range(len(row)), key=lambda c: (-row[c], c))[:k] for row in logits]
    return np.array(rows, np.int64)


def resolve(class_ids, logits):
    """Ids from a caller's request, where -1 is the most probable class, -2 the next."""
    ranked = top_k(logits, logits.shape[1])
    out = np.array(class_ids, np.int64)
    for index, asked in np.ndenumerate(out):
        if asked < 0:
            out[index] = ranked[index[0], -asked - 1]
    return out


def cam_weights(W, class_ids):
    """Rows of the matrix: [B, K, N]."""
    return W.astype(np.float64)[class_ids]


def grids(F, w, nwc=True):
    """max(0, sum_n max(0, w_n) F_n): [B, K, h, w]."""
    B, N, height, width = F.shape
    K = w.shape[1]
    out = np.zeros((B, K, height, width))
    for b in range(B):
        for k in range(K):
            for n in range(N):
                weight = max(0.0, w[b, k, n]) if nwc else w[b, k, n]
                out[b, k] += weight * F[b, n].astype(np.float64)
    return np.maximum(out, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def evidence_logits(F, W, b, class_ids):
    """Logits of the chosen classes: [B, K]."""
    return np.take_along_axis(linear(global_average_pool(F), W, b), class_ids, 1)


def evidence(F, W, b, class_ids):
    """Sigmoid scores of the chosen classes: [B, K]."""
    return sigmoid(evidence_logits(F, W, b, class_ids))


def min_max(values):
    """(values scaled to [0, 1], valid); a constant gives zeros and False."""
    low, high = float(values.min()), float(values.max())
    if not high > low:
        return np.zeros(values.shape), False
    return (values - low) / (high - low), True


def _tent(distance):
    return max(0.0, 1 - abs(distance))


def _cubic(distance, a=-0.75):
    """Keys' cubic convolution kernel."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    if d < 2:
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return 0.0


def sample(grid, y, x, kind="bilinear"):
    """The grid at (y, x), in cells with (0, 0) the centre of the first; edges replicated."""
    kernel, reach = {"bilinear": (_tent, 1), "bicubic": (_cubic, 2)}[kind]
    h, w = grid.shape
    total = 0.0
    for i in range(math.floor(y) - reach + 1, math.floor(y) + reach + 1):
        for j in range(math.floor(x) - reach + 1, math.floor(x) + reach + 1):
            cell = grid[min(max(i, 0), h - 1), min(max(j, 0), w - 1)]
            total += kernel(y - i) * kernel(x - j) * float(cell)
    return total


def upsample(grid, height, width, kind="bilinear"):
    """The grid at the centres of height x width pixels that cover it (half-pixel rule)."""
    h, w = grid.shape
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = (i + 0.5) * h / height - 0.5
            x = (j + 0.5) * w / width - 0.5
            out[i, j] = sample(grid, y, x, kind)
    return out


def loss(sigmoid_logits, labels, positive_weight=None):
    """Beyond Softmax, Eq. 12, up to a constant factor: one number per picture, [B].

    -sum over classes of p y log s + (1 - y) log(1 - s), with y one-hot and p = C - 1
    unless another positive weight is given.
    """
    B, C = sigmoid_logits.shape
    p = C - 1 if positive_weight is None else positive_weight
    out = np.zeros(B)
    for b in range(B):
        for c in range(C):
            z = float(sigmoid_logits[b, c])
            # log s = -log(1 + exp(-z)) and log(1 - s) = -log(1 + exp(z)), without overflow.
            minus_log_s = np.logaddexp(0, -z)
            minus_log_not_s = np.logaddexp(0, z)
            out[b] += p * minus_log_s if c == labels[b] else minus_log_not_s
    return out
