"""Every method on one photograph, side by side, as one PNG.

    python examples/side_by_side.py [IMAGE] --out methods.png [--class NAME]
        [--target-layer NAME]

EfficientNet-Lite0 with its ImageNet weights and the sigmoid branch that sigcam ships. The
first row are the methods as they were published: softmax branch, weights with their signs.
The second is the sigmoid branch as `--purpose localise` has it: negative weights clamped, but
for layercam and hirescam. Without --class the maps are for the predicted class; without
IMAGE they are of one that scikit-image ships.

At this network's last layer, before pooling and a linear layer, most methods are one and
the same (docs/methods.md); with `--target-layer _blocks.10` they part.

Needs the extra `demo`. Each graph is exported, compared with PyTorch and run in ONNX
Runtime: some four minutes on two cores.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from sigcam.classifier.build import BuiltClassifier, build_classifier
from sigcam.core.errors import ExportError, ParityError
from sigcam.core.files import check_writable, write_bytes
from sigcam.core.inputs import inputs_kept
from sigcam.core.spec import Branch, ClassSelection
from sigcam.demo.images import shipped_images
from sigcam.demo.network import BRANCH_FILE
from sigcam.export import ExportOptions, export_artifact
from sigcam.export.methods import METHODS, method_of
from sigcam.images.decode import read_image
from sigcam.runtime.explanation import Explanation
from sigcam.runtime.multipass import MULTIPASS
from sigcam.runtime.session import load

Array = npt.NDArray[Any]

OF_ONE_LAYER = [name for name, one in METHODS.items() if not one.refines]
# rise would take 4,000 passes a map.
FURTHER = [name for name in MULTIPASS if name != "rise"]
ROWS: tuple[Branch, ...] = ("softmax", "sigmoid")
WIDTH, GAP, LINE = 240, 10, 17
WHITE, DARK = 255, (30, 30, 30)


def explanations(
    network: BuiltClassifier, branch: Branch, image: Array, asked: str | None
) -> Iterator[Explanation | None]:
    """One map by each method, in the order of the registries; None where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        for method in OF_ONE_LAYER:
            path = Path(folder) / f"{method}.onnx"
            clamps = branch == "sigmoid" and method_of(method).clamps
            # The methods of several passes run on the last artifact, which has a head graph.
            last = method == OF_ONE_LAYER[-1]
            try:
                export_artifact(
                    network,
                    path,
                    ExportOptions(
                        method=method,
                        branch=branch,
                        nwc=clamps,
                        classes=ClassSelection("input"),
                        head_graph=last,
                    ),
                )
            except ExportError as exc:
                # Only cam has layers that it can't do.
                if method_of(method).need != "rows" or isinstance(exc, ParityError):
                    raise
                yield None
                continue
            with load(path, "ort") as session:
                yield session.explain(image, classes=asked)[0]
                for further in FURTHER if last else ():
                    yield session.explain(image, classes=asked, method=further)[0]


def tile(image: Array, lines: list[str]) -> Array:
    """An image of `WIDTH` with lines of text under it, uint8 RGB."""
    height = round(image.shape[0] * WIDTH / image.shape[1])
    small = cv2.resize(image, (WIDTH, height), interpolation=cv2.INTER_AREA)
    text = np.full((LINE * len(lines) + 8, WIDTH, 3), WHITE, np.uint8)
    for index, line in enumerate(lines):
        where = (2, LINE * (index + 1) - 2)
        cv2.putText(text, line, where, cv2.FONT_HERSHEY_SIMPLEX, 0.45, DARK, 1, cv2.LINE_AA)
    return np.vstack([small, text])


def captions(one: Explanation | None, branch: Branch) -> list[str]:
    """Method, branch and clamping, passes."""
    if one is None:
        return ["cam", "not at this layer", ""]
    if one.method == "eigencam":
        kind = "no branch, no class"
    elif branch == "softmax":
        kind = "softmax"
    else:
        own = METHODS.get(one.method)
        kind = "sigmoid" if own and not own.clamps else "sigmoid, clamped"
    passes = "1 pass" if one.passes == 1 else f"{one.passes} passes"
    return [one.method, kind + ("" if one.valid else ", no map"), passes]


def sheet(image: Array, rows: dict[Branch, list[Explanation | None]]) -> Array:
    """Rows of tiles, the photograph itself first."""
    lines = []
    for branch, found in rows.items():
        first = next(one for one in found if one is not None)
        names = [first.label or f"class {first.class_id}", f"probability {first.probability:.3f}"]
        if first.evidence is not None:
            names.append(f"evidence {first.evidence:.3f}")
        tiles = [tile(image, names)]
        tiles += [
            tile(image // 4 if one is None else one.overlay(), captions(one, branch))
            for one in found
        ]
        gap = np.full((tiles[0].shape[0], GAP, 3), WHITE, np.uint8)
        lines.append(np.hstack([part for one in tiles for part in (gap, one)] + [gap]))
    gap = np.full((GAP, lines[0].shape[1], 3), WHITE, np.uint8)
    return np.vstack([part for line in lines for part in (gap, line)])


@click.command()
@click.argument(
    "path",
    metavar="[IMAGE]",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=False,
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The .png file.")
@click.option("--class", "asked", help="Class to explain, instead of the predicted one.")
@click.option("--target-layer", help="Layer that the maps are made of; the last one by default.")
def main(path: Path | None, out: Path, asked: str | None, target_layer: str | None) -> None:
    """Draw every method on IMAGE."""
    with inputs_kept(*filter(None, [path])):
        check_writable(out)
    image = read_image(path or shipped_images()[0])
    layers = [target_layer] if target_layer else ()
    network = build_classifier(branch_file=BRANCH_FILE, target_layers=layers)
    total = len(ROWS) * (len(OF_ONE_LAYER) + len(FURTHER))
    rows: dict[Branch, list[Explanation | None]] = {branch: [] for branch in ROWS}
    with tqdm(total=total, unit="map", file=sys.stderr) as bar:
        for branch in ROWS:
            for one in explanations(network, branch, image, asked):
                rows[branch].append(one)
                bar.update()
    drawn = cv2.cvtColor(sheet(image, rows), cv2.COLOR_RGB2BGR)
    write_bytes(out, cv2.imencode(".png", drawn)[1].tobytes())
    click.echo(out)


if __name__ == "__main__":
    main()
