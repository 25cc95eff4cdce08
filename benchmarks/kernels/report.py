"""Writes the generated parts of docs/kernels.md: resources, instructions and the roofline.

    python -m benchmarks.kernels.report [--check]

Needs NVRTC and nvdisasm, but no GPU. With --check nothing is written; the exit code is 1 where
the page isn't what would be written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.kernels import roofline as kernel_roofline
from benchmarks.kernels.machine_code import Code, described, disassembled
from sigcam.core.files import write_text
from sigcam.kernels.compile import (
    Compiled,
    Resources,
    compile_source,
    nvrtc_version,
    resources,
    source,
    supported,
)
from sigcam.kernels.errors import CudaUnavailableError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"
SHOWN = (75, 86, 87, 90, 120)
COMMAND = "python -m benchmarks.kernels.report"


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    check = parser.parse_args(arguments).check
    try:
        made = {n: compile_source(source(), n, report=True) for n in SHOWN if n in supported()}
        codes = {
            gpu.architecture: disassembled(made[gpu.architecture].cubin)
            for gpu in kernel_roofline.GPUS
        }
    except CudaUnavailableError as exc:
        print(f"no report without NVRTC and nvdisasm: {exc}", file=sys.stderr)
        return 3
    before = PAGE.read_text(encoding="utf-8")
    page = replaced(before, "resources", resource_table(made))
    page = replaced(page, "roofline", kernel_roofline.page())
    page = replaced(page, "enlarge", kernel_roofline.enlarge_page(codes))
    page = replaced(page, "instructions", instruction_table(codes))
    if check:
        print("as it would be written" if page == before else f"{PAGE} is out of date")
        return int(page != before)
    write_text(PAGE, page)
    return 0


def resource_table(made: dict[int, Compiled]) -> str:
    """Registers of each kernel by architecture, and what they all use besides."""
    found = {number: resources(one.log) for number, one in made.items()}
    rows = [["kernel", *(f"{n / 10:.1f}" for n in found)], ["---"] * (1 + len(found))]
    rows += [
        [f"`{name}`", *(_cell(found[number][name]) for number in found)]
        for name in sorted(next(iter(found.values())))
    ]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    version = "{}.{}".format(*nvrtc_version())
    return f"NVRTC {version}, registers of a thread by compute capability.\n\n{table}"


def instruction_table(codes: dict[int, dict[str, Code]]) -> str:
    """Instructions of `enlarge` and of the vectors of `combine`, for the newest architecture."""
    number = max(codes)
    rows = [f"Compute capability {number / 10:.1f}, one line a kernel.\n\n```"]
    rows += [
        described(name, code)
        for name, code in sorted(codes[number].items())
        if "_v1_" not in name and not name.startswith("extremes")
    ]
    return "\n".join(rows) + "\n```\n"


def _cell(used: Resources) -> str:
    """Registers, and what shouldn't be there."""
    extra = [
        f"{size} B {name}"
        for name, size in (("local", used.stack), ("spilled", used.spills), ("shared", used.shared))
        if size
    ]
    return ", ".join([str(used.registers), *extra])


def replaced(page: str, name: str, text: str) -> str:
    """The page with what stands between a part's two markers exchanged.

    Raises:
        ValueError: a marker is missing.
    """
    begin, end = f"<!-- {name}: written by `{COMMAND}` -->\n", f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{PAGE.name} must have the lines {begin.strip()} and {end}")
    return before + begin + "\n" + text + "\n" + end + after


if __name__ == "__main__":
    sys.exit(main())
