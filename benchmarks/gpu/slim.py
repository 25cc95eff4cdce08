"""The code of one GPU in a CUDA library: the others' is replaced by zeros, which compress away.

    python benchmarks/gpu/slim.py LIBRARY OUT 9.0

A CUDA library holds its kernels once for each architecture, in the section .nv_fatbin: fat
binaries, each a header and entries (cubins and PTX) with headers of their own. Only contents are
overwritten; offsets, sizes and headers stay, so the library loads as before, on that GPU alone.
(The layout is what NVIDIA's own libraries show; it isn't documented.)
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECTION = b".nv_fatbin"
_MAGIC = 0xBA55ED50
_FILE = struct.Struct("<IHHQ")
"""Of a fat binary: magic, version, size of this header, size of what follows it."""
_ENTRY = struct.Struct("<HHIQ")
"""Of an entry: kind, version, size of this header, size of what follows it."""
_ARCHITECTURE = 28
"""Where the compute capability times ten stands in an entry's header."""


@dataclass(frozen=True)
class Entry:
    """The code for one architecture in a fat binary.

    Attributes:
        architecture: compute capability times ten.
        start, size: where its contents lie in the file, without its header.
    """

    architecture: int
    start: int
    size: int


def section(data: bytes | bytearray, name: bytes) -> tuple[int, int]:
    """Returns where a section of a 64-bit ELF file begins and its size.

    Raises:
        ValueError: it isn't such a file, or has no such section.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file, so no library of Linux")
    (table,) = struct.unpack_from("<Q", data, 0x28)
    step, count, names_at = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", data, table + i * step) for i in range(count)]
    names = headers[names_at][4]
    for header in headers:
        begin = names + header[0]
        if data[begin : begin + len(name) + 1] == name + b"\0":
            return header[4], header[5]
    raise ValueError(f"there is no section {name.decode()}: the library holds no kernels")


def entries(data: bytes | bytearray) -> Iterator[Entry]:
    """Yields the code for each architecture in a library.

    Raises:
        ValueError: the file isn't laid out as expected.
    """
    at, size = section(data, SECTION)
    end = at + size
    while at + _FILE.size <= end:
        magic, _, header, length = _FILE.unpack_from(data, at)
        if magic != _MAGIC:
            at += 8  # fat binaries are aligned, and what lies between them is zeros
            continue
        entry, stop = at + header, at + header + length
        if stop > end:
            raise ValueError("a fat binary ends after its section")
        while entry < stop:
            _, _, own, contents = _ENTRY.unpack_from(data, entry)
            (architecture,) = struct.unpack_from("<I", data, entry + _ARCHITECTURE)
            if own < _ARCHITECTURE + 4 or entry + own + contents > stop:
                raise ValueError("an entry of a fat binary ends after it")
            yield Entry(architecture, entry + own, contents)
            entry += own + contents
        at = stop


def slim(data: bytes, architecture: int) -> bytes:
    """Returns a library with the code of one architecture, of the same length.

    Args:
        data: the library.
        architecture: compute capability times ten.

    Raises:
        ValueError: it has no code for that architecture, or isn't laid out as expected.
    """
    kept = bytearray(data)
    found = list(entries(data))
    there = sorted({one.architecture for one in found})
    if architecture not in there:
        raise ValueError(f"the library has code for {there}, not for {architecture}")
    for one in found:
        if one.architecture != architecture:
            kept[one.start : one.start + one.size] = bytes(one.size)
    return bytes(kept)


if __name__ == "__main__":
    source, target, capability = sys.argv[1:]
    made = slim(Path(source).read_bytes(), int(capability.replace(".", "")))
    Path(target).write_bytes(made)
    print(f"{target}: {len(made) - made.count(0)} of {len(made)} bytes aren't zero")
