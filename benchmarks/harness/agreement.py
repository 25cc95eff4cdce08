"""How two sets of answers agree: classes and CAMs."""

from __future__ import annotations

from typing import Any

import numpy as np

Figures = dict[str, Any]


def agreement(wanted: list[dict[str, Any]], got: list[dict[str, Any]]) -> Figures:
    """Correlation of the CAMs, mean and worst, and share of equal predictions.

    A constant CAM has no correlation: it counts as 1 where both are constant, as 0 where
    one is. Where the predictions differ the CAMs are of different classes, and count.
    """
    found = [
        _correlation(a["cams"].ravel(), b["cams"].ravel()) for a, b in zip(wanted, got, strict=True)
    ]
    same = [a["logits"].argmax() == b["logits"].argmax() for a, b in zip(wanted, got, strict=True)]
    return {
        "mean": float(f"{np.mean(found):.6g}"),
        "worst": float(f"{np.min(found):.6g}"),
        "same_class": float(np.mean(same)),
        "images": len(found),
    }


def _correlation(a: Any, b: Any) -> float:
    flat = [not one.std() > 1e-12 * max(1.0, abs(float(one.mean()))) for one in (a, b)]
    if any(flat):
        return float(all(flat))
    return float(np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1])
