"""Writes the table of ONNX files into docs/coverage.md, behind that of the networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sigcam.core.files import write_text

HEADING = "# Which ONNX files work"
Result = dict[str, Any]


def line(result: Result) -> str:
    """Returns one result for a terminal."""
    return (
        f"{result['name']:50} {result['status']:8} {_error(result, 'output')} "
        f"{_error(result, 'features')} {_error(result, 'maps')} {result.get('seconds', 0):6.0f} s  "
        f"{result.get('reason', '')}"
    )


def write(path: Path, results: Sequence[Result], missing: Sequence[str]) -> None:
    """Writes the section, in place of the one that is there.

    Args:
        path: of the page.
        results: one for each file that was run, in the order of the table.
        missing: the files that weren't.
    """
    page = path.read_text() if path.exists() else ""
    before = page.partition(HEADING)[0].rstrip()
    write_text(path, (f"{before}\n\n" if before else "") + _section(results, missing))


def section_of(path: Path) -> str:
    """Returns the section as it is on a page; empty where there is none."""
    found = path.read_text().partition(HEADING) if path.exists() else ("", "", "")
    return "".join(found[1:])


def _section(results: Sequence[Result], missing: Sequence[str]) -> str:
    good = [r for r in results if r["status"] == "agrees"]
    counts = Counter(r["status"] for r in results if r["status"] != "agrees")
    others = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none"
    references = Counter(r["reference"] for r in good)
    methods = Counter(m for r in good for m in r["methods"])
    bad = [f"- {r['name']} ({r['status']}): {r['reason']}" for r in results if r not in good]
    named = "\n".join(bad) or "None."
    left = (
        f"\n\nNot made or not finished in the time, and counted nowhere: {', '.join(missing)}."
        if missing
        else ""
    )
    return f"""{HEADING}

{_INTRO}

- **{len(good)} of the {len(results)} files ({len(good) / max(1, len(results)):.0%}) are within
  1e-4 in all that can be compared.** The worst error of a map is {_worst(good, "maps")},
  of the features {_worst(good, "features")}, of the logits {_worst(good, "output")}.
  The others: {others}.
- {references["exact network"]} of these have fewer bits than the network that they are made of:
  they were read and exported, and have no error but a likeness.
- Of the others, {references["framework"]} have maps that were compared with the framework's, and
  {references["differences"]} with differences; {methods["cam"]} were exported with
  the method cam too, whose maps were compared with Grad-CAM's.

## Refused, or not within 1e-4

{_ROUNDING}

{named}{left}

## All files

{_TABLE}

| file | made by | opset | nodes | input | target layer | N x h x w | logits | features | maps |
|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(_row(r) for r in results)}
"""


_INTRO = """Files as people have them, made on the spot with random weights unless the row says
otherwise, read with `--arch model.onnx` and exported with Grad-CAM. Made with
`python -m benchmarks.coverage.onnx_sources`, whose help
names the environments of the other frameworks. Each file passed all that an export checks, and
then three comparisons with what is outside of sigcam, on four images:

- logits: the artifact's against those of the file itself, in ONNX Runtime. Probabilities are
  turned back into logits (centred), as comparing them would hide the errors of small ones.
- features: the artifact's against the same value inside the file, and the framework's.
- maps: the artifact's against Grad-CAM by its definition in the framework that the file comes from
  (PyTorch with hooks, TensorFlow's GradientTape, Paddle's and MXNet's autograd), computed in
  float64 where the framework can. Where only the file is to be had, against differences: each
  channel of the layer is raised and lowered a little, and ONNX's own reference evaluator computes
  the rest of the file in float64 (two images)."""
_ROUNDING = """Where features differ, the line says how far the framework's own float32, and the
file itself in ONNX Runtime, are from the framework's float64. As far as that, a difference is the
rounding of float32, which some networks magnify: those with random statistics of norms, say, which
fit nothing."""
_TABLE = """Errors are the largest difference as a share of the largest value, a map's of its own.
(d) marks maps that were compared with differences."""


def _worst(results: Sequence[Result], kind: str) -> str:
    return f"{max((r[kind] for r in results if r.get(kind) is not None), default=0.0):.1e}"


def _error(result: Result, kind: str) -> str:
    value = result.get(kind)
    return f"{value:.1e}" if value is not None else "-"


def _row(result: Result) -> str:
    maps = _error(result, "maps")
    if result.get("reference") == "differences" and maps != "-":
        maps += " (d)"
    if result["status"] != "agrees":
        maps = result["status"]
    size = "x".join(map(str, result.get("size", ())))
    cells = [
        result["name"], result.get("source", ""), result.get("opset", ""),
        result.get("nodes", ""), size, result.get("layer", ""),
        "x".join(map(str, result.get("layout", ()))), _error(result, "output"),
        _error(result, "features"), maps,
    ]  # fmt: skip
    note = f" {result['note']}" if result.get("note") else ""
    cells[1] = f"{cells[1]}{';' if note else ''}{note}"
    return f"| {' | '.join(str(cell) or '-' for cell in cells)} |"
