"""Writes the generated parts of docs/kernels.md: resources of the kernels, and the roofline.

    python -m benchmarks.kernels.report [--check]

Needs NVRTC, but no GPU. With --check nothing is written; the exit code is 1 where the page
isn't what would be written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.kernels import roofline as kernel_roofline
from sigcam.core.files import write_text
from sigcam.kernels.compile import (
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
        table = resource_table()
    except CudaUnavailableError as exc:
        print(f"no report without NVRTC: {exc}", file=sys.stderr)
        return 3
    before = PAGE.read_text(encoding="utf-8")
    page = replaced(before, "resources", table)
    page = replaced(page, "roofline", kernel_roofline.page())
    if check:
        print("as it would be written" if page == before else f"{PAGE} is out of date")
        return int(page != before)
    write_text(PAGE, page)
    return 0


def resource_table() -> str:
    """Registers of each kernel for some architectures, and what they all use besides."""
    text = source()
    chosen = [number for number in SHOWN if number in supported()]
    found: dict[int, dict[str, Resources]] = {}
    for number in chosen:
        found[number] = resources(compile_source(text, number, report=True).log)
    rows = [["kernel", *(f"{n / 10:.1f}" for n in chosen)], ["---"] * (1 + len(chosen))]
    rows += [
        [f"`{name}`", *(_cell(found[number][name]) for number in chosen)]
        for name in sorted(found[chosen[0]])
    ]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    version = "{}.{}".format(*nvrtc_version())
    return f"NVRTC {version}, registers of a thread by compute capability.\n\n{table}"


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
