"""Heatmaps from CAMs by one kernel whose arguments are addresses and whole numbers.

It is for programs that can pass no structures, or launch a kernel without Python: its PTX goes
into them, and `launch` says how it is launched. The runtime has the kernels of `clamp_combine`.
"""

from __future__ import annotations

from pathlib import Path

from sigcam.kernels.compile import compile_ptx, source
from sigcam.kernels.plan import BYTE_COLUMNS, COLUMNS, HEADER, THREADS, WARP, Launch

SOURCE = Path(__file__).with_name("flat.cu")
"""The file with the entry points."""

STRIP = 16
"""Pixel rows of a warp."""

_MAX_BLOCKS = (2**31 - 1, 65535, 65535)  # that a launch can have along x, y and z


def ptx() -> bytes:
    """Returns the kernels `flat_bilinear_f32` and `flat_bilinear_u8` as PTX.

    GPUs of compute capability 7.5 and later run it.

    Raises:
        CudaUnavailableError: NVRTC is missing.

    Example:
        Path("flat.ptx").write_bytes(ptx())
    """
    return compile_ptx(source(SOURCE), SOURCE.name)


def launch(count: int, height: int, width: int, *, bytes_: bool = False) -> Launch:
    """Returns which kernel to launch, and how.

    Its arguments are, in this order: the address of the CAMs, float32 [count, rows, columns];
    rows, columns, height, width and `STRIP`, each an int of 32 bits; the address of the
    heatmaps, [count, height, width].

    Args:
        count: number of CAMs: images times classes.
        height: pixel rows of a heatmap.
        width: pixel columns of a heatmap.
        bytes_: whether heatmaps are uint8, 0 to 255; otherwise float32, 0 to 1.

    Raises:
        ValueError: a size below 1, or more than a launch can make.

    Example:
        >>> launch(5, 224, 224)
        Launch(kernel='flat_bilinear_f32', grid=(5, 2, 2), block=256, shared=96)
    """
    if min(count, height, width) < 1:
        raise ValueError(
            f"count, height and width must be at least 1, got {count}, {height} and {width}"
        )
    warps = THREADS // WARP
    block = (1, STRIP * warps, WARP * (BYTE_COLUMNS if bytes_ else COLUMNS))  # heatmaps, pixels
    grid = (count, -(-height // block[1]), -(-width // block[2]))
    if any(got > most for got, most in zip(grid, _MAX_BLOCKS, strict=True)):
        most = [one * size for one, size in zip(_MAX_BLOCKS, block, strict=True)]
        raise ValueError(
            f"a launch makes at most {most[0]} heatmaps of {most[1]} rows and {most[2]} columns, "
            f"got {count} of {height} and {width}"
        )
    kernel = f"flat_bilinear_{'u8' if bytes_ else 'f32'}"
    # Two words for each warp, where their extremes are put together.
    return Launch(kernel, grid, THREADS, 4 * (HEADER + 2 * warps))
