"""The int8 file of an artifact, made by `sigcam quantize`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness.engines import UnavailableError
from harness.networks import Network

OPTIONS: tuple[str, ...] = ()
"""Further options of `sigcam quantize`."""


def quantized(network: Network, path: Path, pictures: Path) -> Path:
    """The quantized form of the artifact at `path`, calibrated on a folder of pictures.

    Raises:
        UnavailableError: there is no such command, no pictures, or it refuses.
    """
    if not _has_command():
        raise UnavailableError("this version of sigcam has no command 'quantize'")
    if not pictures.is_dir():
        raise UnavailableError("needs the real pictures (--data)")

    def make(target: Path) -> None:
        command = [sys.executable, "-m", "sigcam", "quantize", str(path)]
        command += ["--data", str(pictures), "--out", str(target), *OPTIONS]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UnavailableError(f"sigcam quantize refused: {last}")

    return network.made(f"{path.stem}-int8.onnx", make)


def _has_command() -> bool:
    from sigcam.cli import main

    return "quantize" in main.commands
