"""Writes the folds of a data set in the text files of wsolevaluation (Choe et al. 2020).

    python -m benchmarks.datasets.write_folds DATA --folds 3 --out out/folds

Each out/folds/0, 1, ... gets the folders train/ and test/, for

    sigcam train --data out/folds/0/train --data-root DATA ...
    sigcam evaluate ... --data out/folds/0/test --data-root DATA

The folds are those of benchmarks/datasets/paper_tables.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from benchmarks.datasets.paper.folds import fold_datasets
from sigcam.core.files import write_text
from sigcam.data import labelled, open_dataset
from sigcam.data.readers.wsol import (
    IDS_FILE,
    LABELS_FILE,
    LOCALIZATION_FILES,
    SIZES_FILE,
)


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--folds", type=int, default=3, show_default=True)
@click.option("--seed", type=int, default=0)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(data: Path, folds: int, seed: int, out: Path) -> None:
    """Writes the lines of each part's images."""
    dataset = labelled(open_dataset(data, "wsol"))
    metadata = dataset.samples[0].place.file.parent
    for number, parts in enumerate(fold_datasets(dataset, folds, seed)):
        for name, part in zip(("train", "test"), parts, strict=True):
            folder = out / str(number) / name
            folder.mkdir(parents=True, exist_ok=True)
            kept = {sample.name for sample in part.samples}
            for file in (IDS_FILE, LABELS_FILE, SIZES_FILE, *LOCALIZATION_FILES):
                if (metadata / file).is_file():
                    lines = (metadata / file).read_text().splitlines(keepends=True)
                    wanted = [line for line in lines if line.strip().split(",")[0] in kept]
                    write_text(folder / file, "".join(wanted))
            for classes in (metadata / "classes.txt", data / "classes.txt"):
                if classes.is_file():
                    shutil.copyfile(classes, folder / classes.name)
                    break


if __name__ == "__main__":
    main()
