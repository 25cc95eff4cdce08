"""The small cases of the map kernels under compute-sanitizer.

Run by the tool itself as `python -m benchmarks.gpu.sanitizer TOOL`, in the checkout, it does the
cases and counts them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import Any

from benchmarks.gpu import kernels as gpu_kernels
from benchmarks.gpu.report import CheckFailed, CheckSkipped
from benchmarks.gpu.source_tree import ROOT

_ERRORS = r"={9} ERROR SUMMARY: 0 errors\b.*"
_HAZARDS = r"={9} RACECHECK SUMMARY: \d+ hazards? displayed \(0 errors, .*"

TOOLS = {"memcheck": _ERRORS, "racecheck": _HAZARDS, "synccheck": _ERRORS, "initcheck": _ERRORS}
"""Tools of compute-sanitizer, and the last line of each when it found no error."""


def check_sanitizer(tool: str) -> dict[str, Any]:
    """Runs the small cases under a tool of compute-sanitizer.

    An exit code of 0 isn't enough: the tool gives the program's own where it could not attach
    to it. It must say that it found nothing, and the program that it did every case.

    Raises:
        CheckSkipped: compute-sanitizer isn't installed.
        CheckFailed: it reported something, or not that there was nothing.
    """
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        raise CheckSkipped("compute-sanitizer isn't on the PATH; it comes with the CUDA toolkit")
    own = [sys.executable, "-m", "benchmarks.gpu.sanitizer", tool]
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", *own]
    # In the group of this process, which is ended as a whole at the check's time limit.
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, cwd=ROOT
    )
    said = f"{done.stdout}\n{done.stderr}"
    cases = len(gpu_kernels.small_cases())
    problem = None
    summary = re.search(rf"^{TOOLS[tool]}$", said, re.MULTILINE)
    if done.returncode != 0:
        problem = f"ended with code {done.returncode}"
    elif summary is None:
        problem = "didn't say that it found no errors"
    elif _told(cases) not in said.splitlines():
        problem = f"didn't see all of the {cases} cases run"
    if problem is not None or summary is None:
        tail = "\n".join(said.strip().splitlines()[-30:])
        raise CheckFailed(f"{tool} {problem}:\n{tail}")
    return {"tool": tool, "cases": cases, "summary": summary.group().strip("= \r")}


def _told(cases: int) -> str:
    return f"cases done: {cases}"


def run_cases(tool: str) -> int:
    """Runs the small cases; how many there were.

    Not poisoned for initcheck, to which memory that was filled is initialised.
    """
    gpu = gpu_kernels.OnGpu(poison=tool != "initcheck")
    count = 0
    for case in gpu_kernels.small_cases():
        gpu_kernels.compare(case, gpu)
        count += 1
    return count


if __name__ == "__main__":
    print(_told(run_cases(sys.argv[1])))
