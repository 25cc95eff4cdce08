"""Writes docs/coverage.md from the results of `run.py`."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.coverage.check import METHODS
from benchmarks.coverage.names import NETWORKS
from benchmarks.coverage.onnx_sources import report as onnx_files
from sigcam.core.files import write_text

Result = dict[str, Any]


def line(result: Result) -> str:
    """One result for a terminal."""
    text = (
        f"{result['name']:44} {result['method']:8} {result['status']:8} {_error(result):>8} "
        f"{result['seconds']:6.1f} s"
    )
    return f"{text}  {result['reason'] or result['head']}"


def write(path: Path, results: Sequence[Result]) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: of the page.
        results: one for each network and method that was run; networks of the list that are in
            none of them are named as such, and not counted.
    """
    by_name: dict[str, dict[str, Result]] = {}
    for result in results:
        by_name.setdefault(result["name"], {})[result["method"]] = result
    rows = {name: by_name[name] for name in NETWORKS if name in by_name}
    missing = [name for name in NETWORKS if name not in by_name]
    files = onnx_files.section_of(path)  # the page's second half is written by another command
    write_text(path, _page(rows, missing) + (f"\n{files}" if files else ""))


def _page(rows: dict[str, dict[str, Result]], missing: Sequence[str]) -> str:
    results = [result for found in rows.values() for result in found.values()]
    ran = [method for method in METHODS if any(method in found for found in rows.values())]
    return f"""# Which networks work

{_INTRO}

Made with `python -m benchmarks.coverage.run`, by
{_packages(results)}.

{chr(10).join(_summary(method, rows) for method in ran)}
{_others(results)}

## Not explained

{_refusals(rows)}

## Not run

{_not_run(missing)}

## All networks

{_TABLE}

| network | input | head | branch layer | target layer | N x h x w | {" | ".join(ran)} | MB | s |
|---|---|---|---|---|---|{"---|" * len(ran)}---|---|
{chr(10).join(_row(found, ran) for found in rows.values())}
"""


_INTRO = """One network of each family of torchvision's, timm's and transformers' classifiers, a
small one, and the paper's localisation networks. Each row is a whole file:
`sigcam.export_artifact` has written it, and so has checked all that it checks for a user: where
the target layer's grid lies in the image, that its gradients are the untraced model's own, and
every output of the file, run by ONNX Runtime in float32 on batches of 1, 3 and 8 images (two
smooth random ones, noise, black and white), against PyTorch's autograd through the whole model
in float64. The file was then opened again and run. The map is that of the most probable class
(softmax branch, purpose "localise", opset 18).

Each network has random weights (seed 0); parameters that begin at zero are drawn from a small
normal distribution, and batch normalisations get running statistics that fit, since gradients
of zero would test nothing. torchvision's and timm's have 1,000 classes. Those of transformers
are of a small configuration, saved in a folder and loaded from there as `hf/FOLDER`. Many run at
a smaller input than they are made for, which takes less time; the page says at which. The branch
layer and the target layer are those that sigcam finds by itself, unless the row names one behind
">"."""
_TABLE = """Under a method is the CAM's worst error over all images that count, as a share of that
CAM's largest value, or what became of the network. N x h x w is the target layer's CAM, MB the
size of the file. Seconds are wall time of everything, of one method, with other work on two
cores. A head that begins at a class token, or at an early layer, holds blocks of the network;
its words are then those of all that comes after the branch layer."""


def _packages(results: Sequence[Result]) -> str:
    counts = Counter(r.get("packages") or "packages not noted" for r in results)
    if len(counts) == 1:
        return next(iter(counts))
    return ";\n".join(f"{text} ({count} files)" for text, count in counts.most_common())


def _summary(method: str, rows: dict[str, dict[str, Result]]) -> str:
    found = [one[method] for one in rows.values() if method in one]
    good = [r["errors"]["cams"] for r in found if r["status"] == "agrees"] or [0.0]
    count = sum(r["status"] == "agrees" for r in found)
    statuses = Counter(r["status"] for r in found if r["status"] != "agrees")
    others = ", ".join(f"{n} {status}" for status, n in statuses.items()) or "none"
    return (
        f"- **{method}: {count} of the {len(found)} networks that were run "
        f"({count / max(len(found), 1):.1%}) have a file, within 1e-4.** The worst error of a CAM "
        f"is {max(good):.1e}, the median {statistics.median(good):.1e}. The others: {others}."
    )


def _others(results: Sequence[Result]) -> str:
    jumps = {r["name"]: r["left_out"] for r in results if r["left_out"]}
    named = ", ".join(f"{name} ({count})" for name, count in jumps.items())
    small = sum(r["status"] != "late" and 0 < min(r["cam"][1:]) < 3 for r in results)
    empty = sum(r["empty"] for r in results if r["status"] == "agrees")
    return "\n".join(
        [
            f"- Images that don't count, because the definition itself jumps by more than 1e-4 "
            f"when weights and pixels move by 2^-22 of their size (a ReLU within rounding of "
            f"zero): {named or 'none'}.",
            f"- {empty} CAMs of the networks that agree are zero everywhere, on both sides; each "
            f"of these networks has others that aren't.",
            f"- {small} files have a CAM of fewer than 3 rows at the size that was tried.",
        ]
    )


def _error(result: Result) -> str:
    return f"{result['errors']['cams']:.1e}" if "cams" in result["errors"] else "-"


def _refusals(rows: dict[str, dict[str, Result]]) -> str:
    lines = []
    for name, found in rows.items():
        bad = [r for r in found.values() if r["status"] != "agrees"]
        for status, reason in dict.fromkeys((r["status"], r["reason"]) for r in bad):
            of = [r["method"] for r in bad if (r["status"], r["reason"]) == (status, reason)]
            lines.append(f"- `{name}` ({', '.join(of)}: {status}): {reason}")
    return "\n".join(lines) or "None."


def _not_run(missing: Sequence[str]) -> str:
    if not missing:
        return "None."
    return f"These are counted nowhere on this page: {', '.join(missing)}."


def _row(found: dict[str, Result], methods: Sequence[str]) -> str:
    first = next(iter(found.values()))
    cells = [
        first["name"],
        "x".join(map(str, first["size"])),
        first["head"],
        first["branch_layer"],
        first["target_layer"],
        "x".join(map(str, first["cam"])),
        *(_outcome(found.get(method)) for method in methods),
        f"{first['megabytes']:.1f}",
        f"{first['seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _outcome(result: Result | None) -> str:
    if result is None:
        return "not run"
    return _error(result) if result["status"] == "agrees" else str(result["status"])
