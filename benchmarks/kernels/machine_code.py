"""Counts the instructions of the map kernels' machine code: of a row, of a line, of a vector.

    python -m benchmarks.kernels.machine_code [--arch 9.0] [--source kernels/clamp_combine.cu]

Compiles with NVRTC and takes NVIDIA's disassembler: nvdisasm on the PATH, in $CUDA_HOME/bin, or
where a Python package brings it (pip install nvidia-cuda-nvdisasm; Triton's has one too). No GPU.
"""

from __future__ import annotations

import argparse
import heapq
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

from sigcam.kernels.compile import compile_source, source
from sigcam.kernels.errors import CudaUnavailableError

PACKAGES = ("nvidia", "triton")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*);")


@dataclass
class Block:
    """Instructions that are passed one after the other, and the numbers of what can follow."""

    operations: list[str] = field(default_factory=list)
    target: str | None = None
    falls: bool = True
    after: list[int] = field(default_factory=list)

    def ends(self, condition: str | None, operation: str, rest: str) -> bool:
        """Takes note of where its last instruction may go; returns whether it may go anywhere."""
        target = re.search(r"`\((\.L_\w+)\)", rest)
        # What is left by a call of a label is left for good; other calls come back.
        jumps = operation.startswith("BRA") or (operation.startswith("CALL") and target)
        if not jumps and not operation.startswith(("EXIT", "RET")):
            return False
        self.target = target[1] if target and jumps else None
        self.falls = bool(condition) or bool(re.match(r"\s*!?U?P\d", rest))
        return True

    def count(self, beginning: str) -> int:
        """How many of its operations have a name that begins so."""
        return sum(one.startswith(beginning) for one in self.operations)


@dataclass(frozen=True)
class Code:
    """A kernel's blocks, in the order of their addresses."""

    blocks: list[Block]

    @property
    def size(self) -> int:
        """Number of instructions, without the padding at the end."""
        return sum(len(block.operations) for block in self.blocks)

    def having(self, beginning: str, among: Iterable[int] | None = None) -> list[int]:
        """The blocks that have such an operation."""
        chosen = range(len(self.blocks)) if among is None else among
        return [i for i in chosen if self.blocks[i].count(beginning)]

    def loops(self) -> list[tuple[int, int, set[int]]]:
        """First block, last block and all blocks of each loop, the smallest loops first."""
        found = [
            (first, last, self._between(first, last))
            for last, block in enumerate(self.blocks)
            for first in block.after
            if first <= last
        ]
        return sorted(found, key=lambda loop: sum(len(self.blocks[i].operations) for i in loop[2]))

    def _between(self, first: int, last: int) -> set[int]:
        """The blocks from which `last` can be reached without passing `first`."""
        inside, open_ = {first, last}, [last]
        before: dict[int, list[int]] = {}
        for i, block in enumerate(self.blocks):
            for j in block.after:
                before.setdefault(j, []).append(i)
        while open_:
            i = open_.pop()
            if i != first:
                new = [j for j in before.get(i, []) if j not in inside]
                inside.update(new)
                open_ += new
        return inside

    def shortest(self, stops: list[int], among: set[int] | None = None) -> int:
        """Instructions of the shortest way through blocks in this order, both ends included."""
        total = len(self.blocks[stops[0]].operations)
        for start, stop in pairwise(stops):
            total += self._distances(start, among).get(stop, 10**9)
        return total

    def _distances(self, start: int, among: set[int] | None) -> dict[int, int]:
        found: dict[int, int] = {}
        heap = [(0, start)]
        while heap:
            distance, i = heapq.heappop(heap)
            if i in found:
                continue
            found[i] = distance
            for j in self.blocks[i].after:
                if among is None or j in among:
                    heapq.heappush(heap, (distance + len(self.blocks[j].operations), j))
        return found

    def longest(self, first: int, last: int, among: set[int]) -> list[str]:
        """The operations of the longest way without a turn back, both ends included."""
        back = self._turns(first, among)

        @cache
        def way(i: int) -> tuple[int, tuple[int, ...]] | None:
            own = len(self.blocks[i].operations)
            if i == last:
                return own, (i,)
            on = [j for j in self.blocks[i].after if j in among and (i, j) not in back]
            length, path = max(filter(None, map(way, on)), default=(-1, ()))
            return (length + own, (i, *path)) if path else None

        found = way(first)
        return [one for i in found[1] for one in self.blocks[i].operations] if found else []

    def _turns(self, first: int, among: set[int]) -> set[tuple[int, int]]:
        """The jumps by which a way through these blocks comes back to where it has been."""
        found: set[tuple[int, int]] = set()
        path: list[int] = []
        seen: set[int] = set()

        def visit(i: int) -> None:
            seen.add(i)
            path.append(i)
            for j in self.blocks[i].after:
                if j in path:
                    found.add((i, j))
                elif j in among and j not in seen:
                    visit(j)
            path.pop()

        visit(first)
        return found


def disassembled(cubin: bytes) -> dict[str, Code]:
    """Returns the code of each kernel by its name.

    Raises:
        CudaUnavailableError: nvdisasm is missing.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run(
            [disassembler(), "-c", file.name], capture_output=True, text=True, check=True
        ).stdout
    parts = re.split(r"^\.text\.(\w+):$", listing, flags=re.MULTILINE)
    return {name: parsed(body) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def disassembler() -> str:
    """Finds nvdisasm.

    Raises:
        CudaUnavailableError: there is none.
    """
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvdisasm") or (home and shutil.which("nvdisasm", path=f"{home}/bin"))
    if found:
        return found
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path in Path(folder).rglob("nvdisasm*"):
                if path.stem == "nvdisasm" and os.access(path, os.X_OK) and path.is_file():
                    return str(path)
    raise CudaUnavailableError(
        "nvdisasm was not found on the PATH or in $CUDA_HOME/bin; pip install nvidia-cuda-nvdisasm"
    )


def parsed(listing: str) -> Code:
    """The blocks of one kernel in nvdisasm's listing."""
    blocks, labels = [Block()], {}
    for line in listing.splitlines():
        label = re.match(r"^\s*(\.L_\w+):", line)
        if label:
            if blocks[-1].operations:
                blocks.append(Block())
            labels[label[1]] = len(blocks) - 1
        found = INSTRUCTION.search(line)
        if found:
            blocks[-1].operations.append(found[2])
            if blocks[-1].ends(*found.groups()):
                blocks.append(Block())
    for i, block in enumerate(blocks):
        if block.falls and i + 1 < len(blocks):
            block.after.append(i + 1)
        if block.target in labels:
            block.after.append(labels[block.target])
    # The padding behind the end is a jump to itself.
    padding = [i for i, block in enumerate(blocks) if block.after == [i] and not block.falls]
    return Code(blocks[: padding[-1]] if padding else blocks)


@dataclass(frozen=True)
class Rows:
    """Instructions of a thread of `enlarge_*`, which has four or eight columns.

    Attributes:
        row: from one row to the next between the same lines of cells.
        line: more, where a row lies between other lines.
        once: before the first row and after the last one.
    """

    row: int
    line: int
    once: int


def rows_of(code: Code) -> Rows | None:
    """Counts for the loop that stores a thread's pixels at once; None without one.

    Where each row reads its cells, `row` is the longest way round that loop, and `line` 0.
    """
    for first, last, inside in code.loops():
        stores, reads = code.having("STG", inside), code.having("LDG", inside)
        if not stores or not reads or code.blocks[stores[-1]].count("STG") > 1:
            continue
        row = _round(code, [first, stores[-1], last], inside)
        line = min(_round(code, [first, i, stores[-1], last], inside) for i in reads) - row
        if line <= 0:
            return Rows(len(code.longest(first, last, inside)), 0, 0)
        most = max(reads, key=lambda i: code.blocks[i].count("LDG"))
        ends = [i for i in code.having("EXIT") if code.blocks[i].operations[-1] == "EXIT"]
        once = min(code.shortest([0, first, most, stores[-1], last, i]) for i in ends) - row
        return Rows(row, line, once)
    return None


def _round(code: Code, stops: list[int], inside: set[int]) -> int:
    kept = [stop for i, stop in enumerate(stops) if i == 0 or stop != stops[i - 1]]
    return code.shortest(kept, inside)


@dataclass(frozen=True)
class Vectors:
    """Instructions of a thread of `combine*` in one round of the loop over its vectors.

    Attributes:
        operations: how many of each there are.
        loads: vectors of features and weights that are read.
    """

    operations: Counter[str]
    loads: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.operations.values())


def vectors_of(code: Code) -> Vectors | None:
    """Counts for the loop that reads vectors of 16 bytes; None without one."""
    load, found = "LDG.E.128", []  # vectors of 16 bytes
    for first, last, inside in code.loops():
        # Not by what reads the last elements one by one.
        inside -= {i for i in code.having("LDG", inside) if not code.blocks[i].count(load)}
        way = code.longest(first, last, inside)
        if any(one.startswith("FFMA") for one in way):
            found.append(Vectors(Counter(one.split(".")[0] for one in way),
                                 sum(one.startswith(load) for one in way)))  # fmt: skip
    with_loads = [one for one in found if one.loads]
    return max(with_loads, key=lambda one: (one.operations["FFMA"], -one.total), default=None)


def main(arguments: list[str] | None = None) -> int:
    """Prints the counts; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", default="9.0", help="compute capability (default 9.0)")
    parser.add_argument("--source", type=Path, help="another version of clamp_combine.cu")
    given = parser.parse_args(arguments)
    try:
        made = compile_source(source(given.source), int(given.arch.replace(".", "")))
        found = disassembled(made.cubin)
    except CudaUnavailableError as exc:
        print(f"no counts: {exc}", file=sys.stderr)
        return 3
    for name, code in sorted(found.items()):
        print(described(name, code))
    return 0


def described(name: str, code: Code) -> str:
    """One line about a kernel."""
    text = f"{name:30} {code.size:5} instructions"
    rows = rows_of(code) if name.startswith("enlarge") else None
    if rows:
        text += f"; a thread's row {rows.row}, a new line {rows.line} more, once {rows.once}"
    vectors = vectors_of(code) if name.startswith("combine") and "_v1_" not in name else None
    if vectors:
        kinds: Callable[[str], int] = vectors.operations.__getitem__
        text += (
            f"; a round {vectors.total}: {vectors.loads} vectors read, {kinds('LDS')} LDS, "
            f"{kinds('FFMA')} FFMA, {kinds('FSEL') + kinds('SEL')} selects"
        )
    return text


if __name__ == "__main__":
    sys.exit(main())
