"""The definitions, in plain and slow NumPy, float64. Everything else must match these.

Arrays: features F [B, N, h, w], weight matrix W [C, N], bias b [C], logits [B, C],
class ids [B, K], CAM weights w [B, K, N], CAM [h, w].
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


def pooled_linear_gradient(W, class_ids, height, width):
    """dL/dF of L = W[c] . mean(F): the row over the number of positions, [B, K, N, h, w]."""
    rows = W.astype(np.float64)[class_ids] / (height * width)
    return np.broadcast_to(rows[..., None, None], (*rows.shape, height, width)).copy()


def pooled_mlp_gradient(F, W1, b1, W2, class_ids):
    """dL/dF of L = W2[c] . max(0, W1 mean(F) + b1), [B, K, N, h, w]: the chain rule."""
    B, N, h, w = F.shape
    hidden = linear(global_average_pool(F), W1, b1)
    g = np.zeros((B, class_ids.shape[1], N, h, w))
    for b in range(B):
        for k, c in enumerate(class_ids[b]):
            back = np.where(hidden[b] > 0, W2[c].astype(np.float64), 0)
            g[b, k] = (back @ W1.astype(np.float64) / (h * w))[:, None, None]
    return g


def similar_classes(logits, class_ids, count):
    """The `count` classes whose logits are nearest to the class's own, [B, K, count]."""
    out = np.zeros((*class_ids.shape, count), np.int64)
    for b, k in np.ndindex(*class_ids.shape):
        c = class_ids[b, k]
        others = [d for d in range(logits.shape[1]) if d != c]
        out[b, k] = sorted(others, key=lambda d: abs(logits[b, d] - logits[b, c]))[:count]
    return out


def method_weights(method, F, g):
    """CAM weights by the methods' definitions: [B, K, N], or [B, K, N, h, w].

    Args:
        method: name.
        F: features, [B, N, h, w].
        g: gradient of each class's logit, [B, K, N, h, w].
    """
    if method == "layercam":
        return np.maximum(g, 0)
    if method == "hirescam":
        return g
    out = np.zeros(g.shape[:3])
    for b, k, n in np.ndindex(*g.shape[:3]):
        one, features = g[b, k, n], F[b, n].astype(np.float64)
        total = features.sum()
        if method in ("gradcam", "finercam"):
            out[b, k, n] = one.mean()
        elif method == "xgradcam":
            out[b, k, n] = (one * features).sum() / (total + 1e-7)
        elif method == "gradcam++":
            for value in one.flat:
                share = value**2 / (2 * value**2 + total * value**3 + 1e-6)
                out[b, k, n] += share * max(0.0, value)
        else:
            raise ValueError(method)
    return out


def centred(W):
    """Rows of the centred scores l_c - mean_j l_j of a linear layer: [C, N]."""
    W = W.astype(np.float64)
    out = np.zeros(W.shape)
    for c in range(len(W)):
        out[c] = W[c] - sum(W[j] for j in range(len(W))) / len(W)
    return out


def cams(F, w, nwc=True, signed=False):
    """max(0, sum_n max(0, w_n) F_n): [B, K, h, w]. Weights per position aren't clamped.

    Signed: the sum as it is, without the outer max.
    """
    B, N, height, width = F.shape
    K = w.shape[1]
    out = np.zeros((B, K, height, width))
    for b in range(B):
        for k in range(K):
            for n in range(N):
                weight = np.maximum(0.0, w[b, k, n]) if nwc and w.ndim == 3 else w[b, k, n]
                out[b, k] += weight * F[b, n].astype(np.float64)
    return out if signed else np.maximum(out, 0)


def refine(cams):
    """Domeniconi et al. (2026): the product of CAMs scaled to [0, 1], [B, K, h, w] of the largest.

    Args:
        cams: one for each layer, [B, K, h, w].
    """
    height, width = max((cam.shape[2:] for cam in cams), key=lambda size: size[0] * size[1])
    out = np.ones((*cams[0].shape[:2], height, width))
    for cam in cams:
        for b, k in np.ndindex(*cam.shape[:2]):
            out[b, k] *= upsample(min_max(cam[b, k])[0], height, width)
    return out


def reciprocam(F, score):
    """Byun and Lee (2024): the scores of features of which one position is seen, [B, K, h, w].

    Less the smallest of them, which is 0 in the map.

    Args:
        F: features, [B, N, h, w].
        score: from features to scores, [B, K].
    """
    B, _, h, w = F.shape
    out = np.zeros((B, score(F).shape[1], h, w))
    for i, j in np.ndindex(h, w):
        seen = np.zeros(F.shape)
        seen[:, :, i, j] = F[:, :, i, j]
        out[:, :, i, j] = score(seen)
    return out - out.min((2, 3), keepdims=True)


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


def sample(cam, y, x, kind="bilinear"):
    """The CAM at (y, x), in cells with (0, 0) the centre of the first; edges replicated."""
    kernel, reach = {"bilinear": (_tent, 1), "bicubic": (_cubic, 2)}[kind]
    h, w = cam.shape
    total = 0.0
    for i in range(math.floor(y) - reach + 1, math.floor(y) + reach + 1):
        for j in range(math.floor(x) - reach + 1, math.floor(x) + reach + 1):
            cell = cam[min(max(i, 0), h - 1), min(max(j, 0), w - 1)]
            total += kernel(y - i) * kernel(x - j) * float(cell)
    return total


def upsample(cam, height, width, kind="bilinear"):
    """The CAM at the centres of height x width pixels that cover it (half-pixel rule)."""
    h, w = cam.shape
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = (i + 0.5) * h / height - 0.5
            x = (j + 0.5) * w / width - 0.5
            out[i, j] = sample(cam, y, x, kind)
    return out


def scorecam_weights(x, F, score, centre=0.0):
    """Wang et al. (2020), Algorithm 1, for one image: [K, N].

    Args:
        x: the input, [3, H, W].
        F: features, [N, h, w].
        score: from an input to its scores, [K].
        centre: the value of an input of which nothing is seen.
    """
    _, height, width = x.shape
    scores = {}
    for n in range(len(F)):
        mask, valid = min_max(upsample(F[n], height, width))
        if valid:
            scores[n] = score(centre + (x - centre) * mask)
    w = np.zeros((len(score(x)), len(F)))
    for k in range(len(w)):
        total = sum(math.exp(s[k]) for s in scores.values())
        for n, s in scores.items():
            w[k, n] = math.exp(s[k]) / total
    return w


def ablation_weights(F, score):
    """Desai and Ramaswamy (2020), Eq. 2, for one image: [K, N]; |s| divides.

    Args:
        F: features, [N, h, w].
        score: from features to their scores, [K].
    """
    s = score(F)
    w = np.zeros((len(s), len(F)))
    for n in range(len(F)):
        without = F.copy()
        without[n] = 0
        w[:, n] = (s - score(without)) / np.abs(s)
    return w


def eigencam(F):
    """Muhammad and Yeasin (2020) for one image, after ReLU: [h, w].

    The projection of the features, a row for each position, onto their first right singular
    vector; with the sign that agrees with the features' mean over the channels.
    """
    A = F.reshape(len(F), -1).T.astype(np.float64)
    _, _, V = np.linalg.svd(A, full_matrices=False)
    projection = A @ V[0]
    if (projection * A.mean(axis=1)).sum() < 0:
        projection = -projection
    return np.maximum(projection, 0).reshape(F.shape[1:])


def rise(x, masks, probability, keep, centre=0.0):
    """Petsiuk et al. (2018), Eq. 6, for one image: [K, H, W].

    Args:
        x: the input, [3, H, W].
        masks: [M, H, W], 0 to 1.
        probability: from an input to the probabilities of its classes, [K].
        keep: the share of cells that masks show.
        centre: the value of an input of which nothing is seen.
    """
    total = 0.0
    for mask in masks:
        p = probability(centre + (x - centre) * mask)
        total = total + np.array([value * mask.astype(np.float64) for value in p])
    return total / (len(masks) * keep)


def loss(sigmoid_logits, labels, positive_weight=None):
    """Beyond Softmax, Eq. 12, up to a constant factor: one number per image, [B].

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
