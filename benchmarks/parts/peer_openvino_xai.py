"""openvino-xai, in an environment of its own with the versions that it pins.

It has no gradient method and none of ours: its way for classifiers is ReciproCAM, which
runs the head once for each cell of the CAM. So the two can't make the same map, nor run
in one process; what is compared is what each map adds to classification in its own backend.
The environment is made in a temporary folder with pip.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import markdown
from benchmarks.harness.context import Context

Figures = dict[str, Any]

PACKAGE = "openvino-xai==1.1.0"
NETWORKS = ("resnet50",)
INSTALL_LIMIT = 600
RUN_LIMIT = 300

TEXT = f"""
`{PACKAGE}` with the versions that it pins, in an environment of its own. It makes another map
(ReciproCAM, the head once for each cell of the cam), so this isn't the same work as ours: the
figure is what its map adds to the same classification graph in its OpenVINO, same number of
threads, alternating in one process there. What ours adds is in the part `methods`.
"""


def measure(context: Context) -> Figures:
    """Ratios by network, or the reason why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            python = _environment(Path(folder))
            return {
                "networks": {
                    name: _run(python, context.network(name).classifier(), context.effort.seconds)
                    for name in NETWORKS
                }
            }
        except (subprocess.SubprocessError, OSError) as exc:
            return {"unavailable": _reason(exc)}


def _environment(folder: Path) -> Path:
    """The interpreter of a fresh environment that has the package."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
    python = folder / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", PACKAGE]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_LIMIT)
    return python


def _run(python: Path, graph: Path, seconds: float) -> Figures:
    script = Path(__file__).with_name("openvino_xai_script.py")
    command = [str(python), str(script), str(graph), str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=RUN_LIMIT)
    found: Figures = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _reason(exc: Exception) -> str:
    text = getattr(exc, "stderr", None) or str(exc)
    lines = str(text).strip().splitlines() or [type(exc).__name__]
    return lines[-1][:300]


def section(figures: Figures) -> str:
    """One row for each network."""
    title = "\n### Backend only: openvino-xai's map over its own classification\n"
    if "unavailable" in figures:
        return f"{title}{TEXT}\nNot measured: {figures['unavailable']}\n"
    rows = [
        [
            name,
            row["openvino"],
            str(row["rounds"]),
            *(markdown.ms(row["ms"][k]) for k in ("classification", "map")),
            markdown.ratio(row["ratio"]),
        ]
        for name, row in figures["networks"].items()
    ]
    head = [
        "network", "OpenVINO", "rounds", "classification, ms", "with its map, ms",
        "over classification",
    ]  # fmt: skip
    return title + TEXT + markdown.table(head, rows)
