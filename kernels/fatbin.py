"""nvcc: from clamp_combine.cu to one file for many GPUs, made ahead of time.

The file is for machines that shall not compile at first use, or have no NVRTC. It holds a cubin
for each architecture, and PTX of the newest one, which drivers compile for GPUs that came later.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sigcam.core.files import write_bytes
from sigcam.kernels.compile import ARCHITECTURES, OPTIONS, SOURCE, listed
from sigcam.kernels.errors import CudaUnavailableError, KernelError


@dataclass(frozen=True)
class FatBinary:
    """A file of kernels that nvcc made.

    Attributes:
        path: where the file lies.
        architectures: compute capabilities times ten that it has cubins for, in ascending
            order; it has PTX of the last one.
        size: size of the file in bytes.
        version: nvcc's version, "12.8".
    """

    path: Path
    architectures: tuple[int, ...]
    size: int
    version: str


def build(out: Path, architectures: Sequence[int] | None = None) -> FatBinary:
    """Compiles the kernels with nvcc, and writes the file whole or not at all.

    Args:
        out: the file to write.
        architectures: compute capabilities times ten; all of `ARCHITECTURES` that this nvcc
            knows when None.

    Raises:
        CudaUnavailableError: there is no nvcc, or it doesn't know an architecture.
        ValueError: an architecture that the kernels aren't made for.
        KernelError: the source doesn't compile; carries what nvcc printed.
        StorageError: the file can't be written.

    Example:
        build(Path("kernels.fatbin"), [86, 90]).architectures  # (86, 90)
    """
    nvcc = find_nvcc()
    known = _known(nvcc)
    chosen = (
        tuple(n for n in ARCHITECTURES if n in known)
        if architectures is None
        else (_checked(architectures, known))
    )
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "kernels.fatbin"
        flags = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in chosen]
        flags.append(f"-gencode=arch=compute_{chosen[-1]},code=compute_{chosen[-1]}")
        _run([nvcc, "-fatbin", *OPTIONS, "--threads=0", *flags, str(SOURCE), "-o", str(made)])
        data = made.read_bytes()
    write_bytes(out, data)
    version = re.search(r"release ([\d.]+)", _run([nvcc, "--version"]))
    return FatBinary(out, chosen, len(data), version[1] if version else "of unknown version")


def find_nvcc() -> str:
    """Finds the nvcc of $CUDA_HOME or $CUDA_PATH, or on the PATH.

    Raises:
        CudaUnavailableError: there is none.

    Example:
        find_nvcc()  # "/usr/local/cuda/bin/nvcc"
    """
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(variable)
        found = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else None
        if found:
            return found
    found = shutil.which("nvcc")
    if found is None:
        raise CudaUnavailableError(
            "nvcc was not found on the PATH, nor in $CUDA_HOME/bin: install NVIDIA's CUDA "
            "toolkit. Without it the kernels can still be compiled at first use, by NVRTC "
            "(pip install nvidia-cuda-nvrtc)"
        )
    return found


def _known(nvcc: str) -> set[int]:
    return {int(n) for n in re.findall(r"^sm_(\d+)$", _run([nvcc, "--list-gpu-code"]), re.M)}


def _checked(architectures: Sequence[int], known: set[int]) -> tuple[int, ...]:
    chosen = tuple(sorted(set(architectures)))
    refused = [n for n in chosen if n not in ARCHITECTURES]
    if refused or not chosen:
        raise ValueError(
            f"the kernels are made for {listed(ARCHITECTURES)}, got {listed(refused) or 'none'}"
        )
    unknown = [n for n in chosen if n not in known]
    if unknown:
        raise CudaUnavailableError(
            f"this nvcc doesn't know {listed(unknown)}, only {listed(sorted(known))}; install "
            "a newer CUDA toolkit"
        )
    return chosen


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise KernelError(
            f"{' '.join(command[:2])} failed with exit code {done.returncode}:\n"
            f"{done.stdout}{done.stderr}"
        )
    return done.stdout
