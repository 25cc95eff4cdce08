"""Errors of the CUDA kernels.

    KernelError                    a CUDA call or a compilation failed
    └── CudaUnavailableError       a package, library, device or architecture is missing

Wrong arguments raise ValueError or TypeError, and a file that can't be written raises
StorageError. The runtime turns these two into errors of its own (`sigcam.core.errors`).
"""

from __future__ import annotations


class KernelError(RuntimeError):
    """A CUDA call or a compilation failed; says which, with CUDA's name and text for it."""


class CudaUnavailableError(KernelError):
    """CUDA can't be used here; says what is missing, what was found and what to install."""
