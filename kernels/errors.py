"""Errors of the CUDA kernels.

    KernelError                    a CUDA call or a compilation failed
    └── CudaUnavailableError       a package, library, device or architecture is missing

Wrong arguments raise ValueError or TypeError. The runtime turns these into its own tree
(`sigcam.core.errors`), which the kernels know nothing of.
"""

from __future__ import annotations


class KernelError(RuntimeError):
    """A CUDA call or a compilation failed; names the call, and CUDA's name and text for it."""


class CudaUnavailableError(KernelError):
    """CUDA can't be used here; names what is missing, what was found and what to install."""
