"""Makes a file by its maker, in the Python that has what the maker needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.coverage.jobs import ROOT
from benchmarks.coverage.onnx_sources.entries import OTHERS, Entry
from benchmarks.coverage.onnx_sources.makers import common


def make(entry: Entry, folder: Path, pythons: dict[str, str], limit: float) -> str | None:
    """Makes a file that isn't there.

    Args:
        entry: the file.
        folder: its own.
        pythons: module of makers to the Python of its environment.
        limit: seconds until it is ended.

    Returns:
        Why there is none; None if there is.
    """
    if (folder / common.ABOUT).exists():
        return None
    if entry.module in OTHERS and entry.module not in pythons:
        return f"needs --python {entry.module}=PYTHON with {OTHERS[entry.module]}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [pythons.get(entry.module, sys.executable), "-m", entry.made_by, entry.name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            [*command, str(folder)], cwd=ROOT, env=environment, capture_output=True,
            text=True, timeout=limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"not made after {limit:g} s"
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1][:300]
