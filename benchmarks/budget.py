"""The guard: fails if a map costs more than its budget.

    python benchmarks/budget.py

Ratios within one alternating run, on three small networks, where a map weighs most.
Machines that run tests are noisy, so a budget has a tolerance, and a figure over it is
measured again after a while: the guard fails when every try is over.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.backends import FP32, THREADS, open_graph
from benchmarks.harness.measure import Effort, measure
from benchmarks.harness.networks import Network, batch_of, random_image
from benchmarks.parts.methods import check_logits
from sigcam.core.artifact import read_spec
from sigcam.images.preprocess import prepare
from sigcam.runtime.model import ExportedModel
from sigcam.runtime.session import Session

TOLERANCE = 0.02
TRIES = 4
PAUSE = 15.0
"""Seconds between two tries. A machine that lends its processors elsewhere does so for longer than
tries in a row take: explain() on EfficientNet-Lite0 gave 1.174, and minutes later 1.169, 1.153 and
1.141."""
EFFORT = Effort(seconds=3.0, least=40, most=200)
IMAGE_SIZE = (480, 640)

Sample = Callable[[], float]
"""Measures once: what ran over what it is measured against."""


@dataclass(frozen=True)
class Budget:
    """The most that something may cost.

    Attributes:
        network, method: which artifact.
        explain: whether `explain()` on a decoded 640x480 image is held against the
            artifact's own run; if not, the artifact's run against the network without a map.
        ratio: the most that is allowed.
    """

    network: str
    method: str
    ratio: float
    explain: bool = False

    def __str__(self) -> str:
        what = (
            "explain() over the backend run, decoded 640x480"
            if self.explain
            else "map over classification only, backend only"
        )
        return f"{self.network}, {self.method}: {what}"


BUDGETS = (
    Budget("efficientnet_lite0", "cam", 1.02),
    Budget("efficientnet_lite0", "cam", 1.15, explain=True),
    Budget("resnet18", "cam", 1.02),
    # A network of 2 ms, whose MLP head the backward pass goes through in some twenty operators.
    Budget("mobilenet_v3_small", "gradcam", 1.15),
)


def best_of(budget: Budget, sample: Sample) -> float:
    """The smallest of at most TRIES samples; stops at the first within the budget."""
    best = float("inf")
    for number in range(TRIES):
        if number:
            time.sleep(PAUSE)
        best = min(best, sample())
        if best <= budget.ratio + TOLERANCE:
            break
    return best


def guard(
    cases: Sequence[tuple[Budget, Sample]], say: Callable[[str], object] = print
) -> list[Budget]:
    """Measures each case; returns the budgets that are exceeded."""
    exceeded = []
    for budget, sample in cases:
        best = best_of(budget, sample)
        ok = best <= budget.ratio + TOLERANCE
        if not ok:
            exceeded.append(budget)
        allowed = f"budget {budget.ratio:.2f} + {TOLERANCE:.2f} noise"
        say(f"{'ok' if ok else 'OVER':<5} {budget}: {best:.3f} ({allowed})")
    return exceeded


def sampler(budget: Budget, folder: Path, stack: ExitStack) -> Sample:
    """Exports and loads what the budget is about; closed with the stack."""
    network = Network(budget.network, folder)
    path = network.artifact(budget.method)
    mapped = open_graph(FP32, path)
    stack.callback(mapped.close)
    if budget.explain:
        session = Session(ExportedModel(read_spec(path), mapped))
        image = random_image(*IMAGE_SIZE)
        found = session.explain(image)[0]
        if found.heatmap.shape != IMAGE_SIZE or not found.valid:
            raise SystemExit("explain() gave no valid map; nothing was timed")
        feeds = {"image": prepare(image, session.spec.preprocessing)[0][None]}
        calls = {
            "base": lambda: mapped.infer(feeds),
            "map": lambda: session.explain(image)[0].heatmap,
        }
    else:
        plain = open_graph(FP32, network.classifier())
        stack.callback(plain.close)
        feeds = {"image": batch_of(plain.inputs[0].shape, 1)}
        check_logits(plain, mapped, feeds)
        calls = {"base": lambda: plain.infer(feeds), "map": lambda: mapped.infer(feeds)}
    return lambda: float(measure(calls, {"map": "base"}, EFFORT)["ratios"]["map"]["ratio"][0])


def main() -> int:
    """Measures every budget; returns 1 if one is exceeded."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        print(f"{THREADS} threads")
        cases = [(budget, sampler(budget, Path(folder), stack)) for budget in BUDGETS]
        return int(bool(guard(cases)))


if __name__ == "__main__":
    sys.exit(main())
