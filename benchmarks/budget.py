"""The guard: fails if a map costs more than its budget.

    python benchmarks/budget.py

Ratios within one alternating run, on the demo's network. Machines that run tests are
noisy, so a budget has a tolerance, and a figure over it is measured again: the guard
fails when every try is over.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from overhead import build

from sigcam.demo.timing import alternate

# Name to (what ran, what it is measured against, budget).
BUDGETS = {
    "map over classification only, engine only": ("fused", "classification", 1.02),
    "explain() over the engine run, decoded 640x480": ("explain", "engine", 1.15),
}
TOLERANCE = 0.02
TRIES = 4
ROUNDS = 200


def main() -> int:
    """Measures each budget; returns 1 if one is exceeded."""
    exceeded = False
    with tempfile.TemporaryDirectory() as folder:
        bench = build("efficientnet_lite0", Path(folder), None)
        bench.check()
        for title, (name, base, budget) in BUDGETS.items():
            calls = {**bench.engine_calls(), **bench.explain_calls()}
            best = float("inf")
            for _ in range(TRIES):
                ratio = alternate({k: calls[k] for k in (name, base)}, ROUNDS).ratio(name, base)
                best = min(best, ratio)
                if best <= budget + TOLERANCE:
                    break
            ok = best <= budget + TOLERANCE
            exceeded = exceeded or not ok
            verdict = "ok" if ok else "OVER"
            print(f"{verdict:<5} {title}: {best:.3f} (budget {budget:.2f} + {TOLERANCE:.2f} noise)")
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main())
