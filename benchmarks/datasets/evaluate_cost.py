"""What `sigcam evaluate` waits for, and its peak memory: a data set, and the same many times over.

    python -m benchmarks.datasets.evaluate_cost MODEL.onnx [MODEL.onnx ...] --data DATA --times 10

DATA is in the text files of wsolevaluation. Each row is one fresh process; images and masks are
linked, not copied. The share is that of the time in which a backend ran, of the whole run but for
opening the artifacts and writing the report; scoring and reading go on meanwhile in threads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.harness.backends import THREADS
from benchmarks.harness.peak import evaluate_data
from sigcam.data import Sample, open_dataset
from sigcam.data.readers.wsol import (
    IDS_FILE,
    LABELS_FILE,
    LOCALIZATION_FILES,
    SIZES_FILE,
)


def repeated(samples: Sequence[Sample], times: int, folder: Path) -> Path:
    """A data set with every sample several times, under other names."""
    lines: dict[str, list[str]] = {}
    for copy in range(times):
        for index, sample in enumerate(samples):
            name = f"{copy:03}-{index:05}{sample.path.suffix}"
            (folder / name).symlink_to(sample.path.resolve())
            lines.setdefault(IDS_FILE, []).append(name)
            if sample.label is not None:
                lines.setdefault(LABELS_FILE, []).append(f"{name},{sample.label}")
            if sample.size is not None:
                lines.setdefault(SIZES_FILE, []).append(f"{name},{sample.size[0]},{sample.size[1]}")
            for box in [] if sample.boxes is None else sample.boxes.tolist():
                lines.setdefault(LOCALIZATION_FILES[0], []).append(
                    ",".join([name, *(f"{value:g}" for value in box)])
                )
            for number, mask in enumerate(sample.masks or ()):
                if not isinstance(mask, Path):
                    raise click.UsageError("masks must be files")
                link = f"mask-{copy:03}-{index:05}-{number}{mask.suffix}"
                (folder / link).symlink_to(mask.resolve())
                ending = "" if sample.ignore_level is not None else ","
                lines.setdefault(LOCALIZATION_FILES[1], []).append(f"{name},{link}{ending}")
    for file, rows in lines.items():
        (folder / file).write_text("\n".join(rows) + "\n")
    return folder


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path))
@click.option("--times", type=int, default=10, show_default=True)
def main(models: tuple[Path, ...], data: Path, times: int) -> None:
    """Prints seconds, share and peak of both."""
    samples = open_dataset(data, "wsol").samples
    peaks = []
    for count in (1, times):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "data").mkdir()
            made = repeated(samples, count, Path(folder) / "data")
            found = evaluate_data(models, made, Path(folder) / "out", threads=THREADS)
        peaks.append(found["peak_mb"])
        click.echo(
            f"{len(models)} artifacts, {count * len(samples)} images: {found['seconds']:.1f} s, "
            f"backend {found['backend_busy']:.0%}, peak {found['peak_mb']:.0f} MB"
        )
    click.echo(f"peak of the larger over the smaller: {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
