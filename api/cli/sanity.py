"""`sigcam sanity`: whether a map depends on what the network learnt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sigcam.cli.common import (
    changed_preprocessing,
    echo,
    import_from_here,
    preprocessing_options,
    reports_errors,
    say,
)
from sigcam.cli.data import data_options, open_named
from sigcam.cli.maps import build_named, check_branch_named, map_options
from sigcam.core.cpus import wait_asleep
from sigcam.core.files import check_writable, write_text
from sigcam.core.inputs import refuse_input
from sigcam.core.progress import Bar

if TYPE_CHECKING:
    from sigcam.core.spec import ChannelOrder
    from sigcam.data import Sample
    from sigcam.evaluate.results.bootstrap import Estimate
    from sigcam.evaluate.sanity import SanityReport


@click.command(name="sanity")
@map_options
@preprocessing_options
@data_options
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="The most images to take, spread evenly over the data set.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="What the weights, and images for the intervals, are drawn with.",
)
@click.option("--out", type=click.Path(path_type=Path), help="File for the figures (JSON).")
@reports_errors
def command(
    classifier: dict[str, Any],
    chosen: dict[str, Any],
    data: dict[str, Any],
    size: tuple[int, int] | None,
    rule: str | None,
    resize: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    scale: float | None,
    channel_order: ChannelOrder | None,
    limit: int,
    seed: int,
    out: Path | None,
) -> None:
    """Check that the map depends on what the network learnt.

    The layers lose what they learnt one after the other, from the output to the input, and the
    maps are compared with those of the intact network (Adebayo et al. 2018): a correlation that
    stays near 1 means that the map doesn't depend on what was lost. Labels aren't needed.
    """
    wait_asleep()
    needs_sigmoid = chosen["branch"] == "sigmoid"
    if needs_sigmoid:
        check_branch_named(classifier)
    if out is not None:
        check_writable(out)
    import_from_here()

    from sigcam.evaluate.sanity import check_sanity
    from sigcam.export import ExportOptions

    # Built before the model is loaded: what contradicts itself is told at once.
    options = ExportOptions(**chosen)
    samples = spread(open_named(data, multi_label=True).samples, limit)  # no label is used
    built = build_named(
        classifier, needs_sigmoid=needs_sigmoid, size=size, mean=mean, std=std, scale=scale,
        channel_order=channel_order,
    )  # fmt: skip
    if out is not None:
        refuse_input(out)  # now that all is known that is read
    preprocessing = changed_preprocessing(built.preprocessing, rule=rule, resize=resize)
    say(f"{len(samples)} images, of the class that the intact network predicts")
    with Bar(None, unit="stage", label="sanity") as bar:
        report = check_sanity(
            built,
            [sample.path for sample in samples],
            replace(options, preprocessing=preprocessing),
            seed=seed,
            progress=lambda done, _: bar.advance_to(done),
        )
    if report.constant:
        say(f"{report.constant} of the intact maps are constant; they count as 0 throughout")
    for line in table(report):
        echo(line)
    if out is not None:
        write_text(out, json.dumps(report.as_json(), indent=1) + "\n")


def spread(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """Takes at most so many samples, at even distances: data sets are often sorted by class."""
    count = min(limit, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]


def table(report: SanityReport) -> list[str]:
    """Lays the report out in columns, a line for each stage."""
    rows = [
        ("lost, with all above", "Pearson", "Spearman", "constant"),
        *(
            (stage.name, _interval(stage.pearson), _interval(stage.spearman), str(stage.constant))
            for stage in report.stages
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _interval(one: Estimate) -> str:
    return f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})"
