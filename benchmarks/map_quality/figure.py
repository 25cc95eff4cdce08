"""Draws mosaics with the maps of several sources side by side, to be looked at.

    python -m benchmarks.map_quality.figure --caltech CALTECH --imagenet IMAGENET_SAMPLES

Takes the features that the study kept in `--out` and writes mosaics.png there: a row for each tile
of a mosaic, a column for each source, the map of the tile's class over the whole mosaic. The images
belong to the data set, so the file isn't part of the project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click
import cv2
import numpy as np
import torch

from benchmarks.map_quality.__main__ import LITE, backbones, caltech_task, open_parts
from benchmarks.map_quality.sources import Source
from benchmarks.map_quality.study import KINDS, Size, Task, train_kind
from sigcam.core.files import write_bytes
from sigcam.core.types import Array
from sigcam.evaluate.localization.grid_pointing import tile_shares
from sigcam.evaluate.mosaics import Mosaic, mosaic_input
from sigcam.images.overlay import draw
from sigcam.images.preprocess import place
from sigcam.images.upsample import to_heatmap

_WIDTH = 220


def sources_of(task: Task) -> Mapping[str, Source]:
    """Returns the maps that are drawn, by their titles."""
    kinds = {kind.label: kind for kind in KINDS}
    given, without = (
        train_kind(task, kinds[name], 0).module for name in ("sigmoid", "sigmoid without labels")
    )
    return {
        "softmax": Source(task.head),
        "centred": Source(task.head, centred=True),
        "sigmoid": Source(given),
        "without labels": Source(without),
        "sigmoid, clamped": Source(given, nwc=True),
    }


def rows_of(task: Task, mosaic: Mosaic, features: Array, sources: Mapping[str, Source]) -> Array:
    """Draws a mosaic, a row for each tile, uint8 [4 * height, width, 3] RGB."""
    pixels = mosaic_input(mosaic, task.backbone.for_mosaics(mosaic.side))
    plain = replace(task.backbone.for_mosaics(mosaic.side), rule="stretch", resize=None)
    placement = place(plain, *pixels.shape[:2])
    rows = []
    for number, tile in enumerate(mosaic.tiles):
        cells = [_titled(pixels, (task.test.classes or ())[tile.label or 0])]
        for title, source in sources.items():
            cam = source.cams(features[None], np.array([[tile.label]]))[0, 0]
            heatmap, valid = to_heatmap(cam, placement)
            drawn = draw(pixels, heatmap if valid else None, placement.crop_box)
            share = tile_shares(cam, number, mosaic.side)[0]
            cells.append(_titled(np.asarray(drawn), f"{title} {share:.0%}"))
        rows.append(np.hstack(cells))
    return np.vstack(rows)


def _titled(image: Array, title: str) -> Array:
    small = cv2.resize(np.ascontiguousarray(image), (_WIDTH, _WIDTH), interpolation=cv2.INTER_AREA)
    bar = np.full((22, _WIDTH, 3), 255, np.uint8)
    cv2.putText(bar, title, (3, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([bar, small])


@click.command()
@click.option("--caltech", type=click.Path(path_type=Path), required=True)
@click.option("--imagenet", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/map-quality"))
@click.option("--mosaics", "count", type=int, default=2, show_default=True)
def main(caltech: Path, imagenet: Path, out: Path, count: int) -> None:
    """Draws the first mosaics of the study's 100 classes."""
    torch.set_num_threads(1)
    parts = open_parts(caltech, imagenet)
    [backbone] = backbones((LITE[0],), out, parts[0])
    task = caltech_task(backbone, parts, 100, Size(), out)
    sources = sources_of(task)
    _, features, _ = task.games[0]
    drawn = [
        rows_of(task, mosaic, np.asarray(features[index], np.float32), sources)
        for index, mosaic in enumerate(task.mosaics(2)[:count])
    ]
    _, data = cv2.imencode(".png", np.vstack(drawn)[:, :, ::-1])
    write_bytes(out / "mosaics.png", data.tobytes())
    click.echo(str(out / "mosaics.png"))


if __name__ == "__main__":
    main()
