"""Runs the commands of README and docs, and writes or compares what they print.

    python docs/console.py --check [PAGE ...]
    python docs/console.py --write [PAGE ...]

A line that begins with `    $ ` is a command, and the indented lines below it are what it prints.
The commands of a page run in their order in one folder, which PLACES fills with what they need;
one that must end with another exit code than 0 says so: `    $ command  # exit 1`. With `--write`
the output on the page is replaced; with `--check` it is compared: words must be the same, and
numbers may differ by what another processor's rounding makes of them.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
PETS = ROOT.parent / "shared" / "data" / "pets"
PROMPT = "    $ "
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
RELATIVE, ABSOLUTE = 0.05, 0.02
"""How far a number of the page may be from the one that is printed: trained figures differ a
little between processors. Whole numbers, such as corners of boxes, may be off by `WHOLE`."""
WHOLE = 6


@dataclass
class Console:
    """A command of a page.

    Attributes:
        first: the page's line that it begins in, from 0.
        end: the line after its output.
        command: what the shell runs.
        code: the exit code that it must end with.
        output: the lines that the page shows.
    """

    first: int
    end: int
    command: str
    code: int
    output: list[str] = field(default_factory=list)


def consoles(lines: list[str]) -> Iterator[Console]:
    """Yields the commands of a page in their order."""
    at = 0
    while at < len(lines):
        if not lines[at].startswith(PROMPT):
            at += 1
            continue
        first, parts = at, [lines[at].removeprefix(PROMPT)]
        while parts[-1].endswith("\\"):
            at += 1
            parts.append(lines[at].strip())
        at += 1
        output = at
        while at < len(lines) and lines[at].startswith("    ") and not _is_prompt(lines[at]):
            at += 1
        text = "\n".join(parts)
        command, _, code = text.partition("  # exit ")
        shown = [line.removeprefix("    ") for line in lines[output:at]]
        yield Console(first, at, command, int(code or 0), shown)


def _is_prompt(line: str) -> bool:
    return line.startswith(PROMPT)


def run(console: Console, folder: Path) -> list[str]:
    """Runs a command and returns what it prints on either stream.

    Raises:
        SystemExit: it ends with another exit code than the page says.
    """
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(  # noqa: S602 (commands of our own pages, with their pipes)
        console.command, shell=True, cwd=folder, env=environment, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode != console.code:
        raise SystemExit(
            f"`{console.command}` ended with {done.returncode}, not {console.code}:\n{done.stdout}"
        )
    return [line.rstrip() for line in done.stdout.rstrip().splitlines()]


def alike(shown: str, printed: str) -> bool:
    """Says whether two lines have the same words and nearly the same numbers."""
    if NUMBER.split(shown) != NUMBER.split(printed):
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True)
    return all(_near(one, other) for one, other in pairs)


def _near(one: str, other: str) -> bool:
    a, b = float(one), float(other)
    if one.isdigit() and other.isdigit():
        return abs(a - b) <= max(WHOLE, RELATIVE * abs(a))
    if "e" in one and "e" in other and a > 0 and b > 0:  # rounding errors: the same size is enough
        return abs(math.log10(a) - math.log10(b)) < 1.5
    return abs(a - b) <= max(ABSOLUTE, RELATIVE * abs(a))


def difference(console: Console, printed: list[str]) -> str | None:
    """Returns what differs between the page and the output, in words; None where nothing does."""
    if len(console.output) != len(printed):
        return (
            f"`{console.command}` prints {len(printed)} lines, the page shows "
            f"{len(console.output)}:\n" + "\n".join(printed)
        )
    for shown, line in zip(console.output, printed, strict=True):
        if not alike(shown, line):
            return f"`{console.command}` prints\n  {line}\nand the page shows\n  {shown}"
    return None


def use_photographs(folder: Path) -> None:
    """Fills a folder for README and the pages that go on from it: photographs and a video."""
    import cv2
    import numpy as np

    from sigcam.demo.images import shipped_images

    images = {path.stem: np.asarray(cv2.imread(str(path))) for path in shipped_images()}
    (folder / "images").mkdir()
    for name, image in images.items():
        cv2.imwrite(str(folder / "images" / f"{name}.jpg"), image)
    cv2.imwrite(str(folder / "cat.jpg"), images["chelsea"])
    cv2.imwrite(str(folder / "street.jpg"), images["motorcycle_left"])
    random = np.random.default_rng(0)
    for label, name in (("cat", "chelsea"), ("coffee", "coffee")):
        (folder / "my-images" / label).mkdir(parents=True)
        height, width = images[name].shape[:2]
        for number in range(20):
            top, left = random.integers(0, height // 3), random.integers(0, width // 3)
            crop = images[name][top : top + height * 2 // 3, left : left + width * 2 // 3]
            cv2.imwrite(str(folder / "my-images" / label / f"{number:02}.jpg"), crop)
    writer = cv2.VideoWriter(
        str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (320, 240)
    )
    for shift in range(12):
        writer.write(np.roll(cv2.resize(images["chelsea"], (320, 240)), 4 * shift, axis=1))
    writer.release()


def use_pets(folder: Path) -> None:
    """Puts the images of three breeds into a folder, as `pets`."""
    if not PETS.is_dir():
        raise SystemExit(f"this page needs the images of {PETS.name} at ../shared/data/{PETS.name}")
    (folder / "pets").symlink_to(PETS)


def use_onnx_files(folder: Path) -> None:
    """Fills a folder for the page about ONNX files: two files beside the one that it makes."""
    import cv2
    import onnx.parser
    import torch
    import torchvision

    from sigcam.demo.images import shipped_images

    cat = next(path for path in shipped_images() if path.stem == "chelsea")
    cv2.imwrite(str(folder / "cat.jpg"), cv2.imread(str(cat)))
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v3_small(num_classes=10).eval()

    class LikeKeras(torch.nn.Module):
        """Channels last, Caffe's mean taken off in the graph, a softmax at the end."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.register_buffer("mean", torch.tensor([103.939, 116.779, 123.68]))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.network((images - self.mean).permute(0, 3, 1, 2)).softmax(1)

    torch.onnx.export(
        LikeKeras(), (torch.zeros(1, 160, 160, 3),), str(folder / "like-keras.onnx"),
        input_names=["image"], output_names=["probabilities"], external_data=False, verbose=False,
    )  # fmt: skip
    onnx.save(onnx.parser.parse_model(_DETECTOR), str(folder / "detector.onnx"))


_DETECTOR = """
<ir_version: 8, opset_import: ["": 17]>
detector (float[1, 3, 640, 640] images) => (float[1, 400, 4] boxes, float[1, 80, 400] scores,
                                            int64[kept, 3] selected) {
    sizes = Constant <value_ints = [84, 3, 32, 32]> ()
    weight = ConstantOfShape (sizes)
    grid = Conv <strides = [32, 32]> (images, weight)
    flat = Flatten <axis = 2> (grid)
    shape = Constant <value_ints = [1, 84, 400]> ()
    columns = Reshape (flat, shape)
    parts = Constant <value_ints = [4, 80]> ()
    corners, scores = Split <axis = 1> (columns, parts)
    boxes = Transpose <perm = [0, 2, 1]> (corners)
    selected = NonMaxSuppression (boxes, scores)
}
"""


PLACES: tuple[tuple[Callable[[Path], None], tuple[str, ...]], ...] = (
    (use_photographs, ("README.md", "docs/evaluation.md", "docs/quantization.md")),
    (use_pets, ("docs/walkthrough.md",)),
    (use_onnx_files, ("docs/onnx.md",)),
)
"""What fills a folder, and the pages whose commands run there, one page after the other."""


def go_through(name: str, folder: Path, *, write: bool) -> list[str]:
    """Runs the commands of a page in a folder; returns what differs, or writes what they print."""
    page = ROOT / name
    lines = page.read_text(encoding="utf-8").splitlines()
    problems, new, at = [], [], 0
    for console in consoles(lines):
        click.echo(f"{name}: {console.command.splitlines()[0]}", err=True)
        printed = run(console, folder)
        shows = bool(console.output) or write
        problem = difference(console, printed) if shows and not write else None
        problems += [problem] if problem else []
        new += lines[at : console.end - len(console.output)]
        # A command that the page shows without output keeps none: it is there to be copied.
        new += [f"    {line}".rstrip() for line in printed] if console.output else []
        at = console.end
    if write:
        page.write_text("\n".join([*new, *lines[at:]]) + "\n", encoding="utf-8")
    return problems


@click.command()
@click.argument("pages", nargs=-1)
@click.option("--write/--check", required=True, help="Replace the output on the pages, or compare.")
def main(pages: tuple[str, ...], write: bool) -> None:
    """Run the commands of PAGES; of all pages that have any when left out."""
    known = [name for _, names in PLACES for name in names]
    unknown = sorted(set(pages) - set(known))
    if unknown:
        raise click.UsageError(
            f"no commands of {', '.join(unknown)} are run; the pages are {', '.join(known)}"
        )
    problems = []
    for fill, names in PLACES:
        chosen = [name for name in names if not pages or name in pages]
        if not chosen:
            continue
        with tempfile.TemporaryDirectory() as folder:
            fill(Path(folder))
            # Later pages go on from what the commands of earlier ones wrote.
            last = max(names.index(name) for name in chosen)
            for name in names[: last + 1]:
                problems += go_through(name, Path(folder), write=write and name in chosen)
    if problems:
        raise SystemExit("\n\n".join(problems))


if __name__ == "__main__":
    main()
