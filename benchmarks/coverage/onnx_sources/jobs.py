"""Makes a file, and checks it in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.coverage import run as networks
from benchmarks.coverage.onnx_sources import check as one_file
from benchmarks.coverage.onnx_sources.entries import OTHERS, Entry
from benchmarks.coverage.onnx_sources.makers import common

# One process imports everything and is copied for each file.
_CONTEXT = multiprocessing.get_context("forkserver")


def prepare() -> None:
    """Says what the process that is copied imports; to be called once, before `run`."""
    os.environ["PYTHONPATH"] = str(networks.ROOT)  # for the server's own interpreter
    _CONTEXT.set_forkserver_preload(["benchmarks.coverage.warm"])


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
    environment = {**os.environ, "PYTHONPATH": str(networks.ROOT)}
    try:
        done = subprocess.run(
            [*command, str(folder)], cwd=networks.ROOT, env=environment, capture_output=True,
            text=True, timeout=limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"not made after {limit:g} s"
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1][:300]


def _child(name: str, folder: Path, end: Connection) -> None:
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    end.send(one_file.check(name, folder))


def run(name: str, folder: Path, limit: float) -> dict[str, Any]:
    """Checks a file in a process of its own.

    Args:
        name: of the file.
        folder: its own.
        limit: seconds until it is ended.
    """
    here, there = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_child, args=(name, folder, there))
    process.start()
    there.close()
    result: dict[str, Any] = {"name": name, "status": "failed"}
    try:
        if here.poll(limit):
            result = here.recv()
        else:
            result |= {"status": "late", "reason": f"not done after {limit:g} s"}
    except EOFError:
        process.join()
        result["reason"] = f"the process ended with code {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return result


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the last result of each file, by name."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {result["name"]: result for result in map(json.loads, lines)}
