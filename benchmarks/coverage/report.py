"""docs/coverage.md, from the results of `coverage.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sigcam.core.files import write_text

Result = dict[str, Any]


def line(result: Result) -> str:
    """One result for a terminal."""
    text = (
        f"{result['name']:40} {result['status']:8} {_error(result):>8} {result['seconds']:6.1f} s"
    )
    return f"{text}  {result['reason'] or result['head']}"


def write(path: Path, results: Sequence[Result], missing: Sequence[str] = ()) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: of the page.
        results: one for each network that was run.
        missing: names of the list that weren't run.
    """
    write_text(path, _page(results, missing))


def _page(results: Sequence[Result], missing: Sequence[str]) -> str:
    bad = [r for r in results if r["status"] != "agrees"]
    whole = all(r["backbone"] for r in results)
    return f"""# Which {"networks" if whole else "heads and last layers"} work

{_INTRO}
{_how_much(results)}

Made with `python -m benchmarks.coverage.run{"" if whole else " --no-backbone"}`, by
{_packages(results)}.

{_summary(results)}

## Not explained

{_refusals(bad)}

## Not run yet

{", ".join(missing) or "None."}

## All networks

{_TABLE}

| network | input | head | branch layer | target layer | N x h x w | error | s |
|---|---|---|---|---|---|---|---|
{chr(10).join(_row(r) for r in results)}
"""


_INTRO = """One network of each family of torchvision's and timm's classifiers, a small one, and the
paper's localisation networks. Each has random weights (seed 0); parameters that begin at
zero are drawn from a small normal distribution, and batch normalisations get running
statistics that fit, since gradients of zero would test nothing. The branch layer and the
target layer are those that sigcam finds by itself. One ONNX graph with the maps of gradcam
and layercam of the most probable class (softmax branch, 1,000 classes, opset 18) is made of
the same modules as artifacts are, and runs in ONNX Runtime in float32, on batches of 1 and
3 images (two smooth random ones and noise). Each CAM is compared with PyTorch's autograd
through the whole model in float64: the largest difference over the CAM's own maximum.
"""
_TABLE = """"error" is the worst over both methods, both batches and all images; N x h x w is the
target layer's CAM. Seconds are wall time of everything, both methods, with several networks
and other work on two cores. A head that begins at a class token, or at an early layer, holds
blocks of the network; its words are then those of all that comes after the branch layer."""


def _how_much(results: Sequence[Result]) -> str:
    whole = sum(r["backbone"] for r in results)
    if whole == len(results):
        return "The whole network is in that graph."
    some = f"The whole network is in that graph for {whole} of them. For the others it"
    return (
        f"{some if whole else '**That graph**'} begins at\n"
        "the target layer (or, if that lies inside a block, at the block's entry): the backward\n"
        "pass and the head are all there. PyTorch computes what comes before in float32, which an\n"
        "ordinary ONNX export would translate."
    )


def _packages(results: Sequence[Result]) -> str:
    counts = Counter(r.get("packages") or "packages not noted" for r in results)
    if len(counts) == 1:
        return next(iter(counts))
    return ";\n".join(f"{text} ({count} networks)" for text, count in counts.most_common())


def _summary(results: Sequence[Result]) -> str:
    good = [r for r in results if r["status"] == "agrees"]
    bad = [r for r in results if r["status"] != "agrees"]
    jumps = [r for r in results if r["unstable"]]
    cams, unstable = (sum(r[key] for r in results) for key in ("cams", "unstable"))
    worst = sorted(max(r["errors"].values()) for r in good) or [0.0]
    counts = Counter(r["status"] for r in bad)
    others = ", ".join(f"{n} {status}" for status, n in counts.items()) or "none"
    return "\n".join(
        [
            f"- **{len(good)} of {len(results)} networks ({len(good) / max(len(results), 1):.1%}) "
            f"agree within 1e-4.** Their worst error is {worst[-1]:.1e}, their median "
            f"{worst[len(worst) // 2]:.1e}.",
            f"- The others: {others}.",
            f"- Of {cams} CAMs, {unstable} don't count, because the definition itself jumps by "
            f"more than 1e-4 when weights and pixels move by 2^-22 of their size (a ReLU within "
            f"rounding of zero): {_names(jumps)}.",
            f"- {sum(r['empty'] for r in good)} CAMs of the networks that agree are zero "
            f"everywhere, on both sides; each of these networks has others that aren't.",
        ]
    )


def _error(result: Result) -> str:
    errors = result["errors"].values()
    return f"{max(errors):.1e}" if errors else "-"


def _names(results: Sequence[Result]) -> str:
    return ", ".join(f"{r['name']} ({r['unstable']})" for r in results) or "none"


def _refusals(results: Sequence[Result]) -> str:
    lines = [f"- `{r['name']}` ({r['status']}): {r['reason']}" for r in results]
    return "\n".join(lines) or "None."


def _row(result: Result) -> str:
    cells = [
        result["name"],
        "x".join(map(str, result["size"])),
        result["head"],
        result["branch_layer"],
        result["target_layer"],
        "x".join(map(str, result["cam"])),
        _error(result) if result["status"] == "agrees" else result["status"],
        f"{result['seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"
