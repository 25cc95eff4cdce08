"""`sigcam export`: a trained classifier and its branch to one ONNX graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from sigcam.cli.common import (
    changed_preprocessing,
    echo,
    import_from_here,
    preprocessing_options,
    reports_errors,
    say,
)
from sigcam.cli.maps import build_named, check_branch_named, map_options
from sigcam.core.artifact import head_path
from sigcam.core.cpus import wait_asleep
from sigcam.core.errors import UsageError
from sigcam.core.files import check_writable
from sigcam.core.spec import ChannelOrder, Preprocessing

LAYOUTS = {"uint8": "uint8_nhwc", "raw": "float32_nhwc", "float32": "float32_nchw"}


@click.command(name="export")
@map_options
@click.option(
    "--profile",
    type=click.Choice(["fused", "split"]),
    default="fused",
    show_default=True,
    help="Finished CAMs out of the graph, or features and CAM weights, for GPUs and up to about 30 "
    "classes.",
)
@click.option(
    "--classes",
    default="top1",
    show_default=True,
    metavar="top1|topK|input",
    help="Which classes get a map: the predicted, the K best (top5), or named at run time.",
)
@click.option(
    "--input",
    "layout",
    type=click.Choice(list(LAYOUTS)),
    help="Raw bytes [B, H, W, n]; raw values, float32 [B, H, W, n], of a --scale other than 255; "
    "or normalised float32 [B, n, H, W].  [default: uint8, or raw with such a scale]",
)
@preprocessing_options
@click.option(
    "--class-names",
    type=click.Path(path_type=Path),
    help="Text file with one class name per line, in the order of the class ids.",
)
@click.option("--sigmoid-logits", is_flag=True, help="Also emit the branch's logits of all C.")
@click.option(
    "--features", is_flag=True, help="Also emit the features, for methods of several passes."
)
@click.option(
    "--head-graph",
    is_flag=True,
    help="Also write NAME.head.onnx, for maps of further classes without the backbone.",
)
@click.option(
    "--external-data",
    is_flag=True,
    help="Weights in a file of their own beside the graph, as those over 2 GiB always are.",
)
@click.option("--tolerance", type=float, default=1e-4, show_default=True, help="For the parity.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The .onnx file.")
@reports_errors
def command(
    classifier: dict[str, Any],
    chosen: dict[str, Any],
    layout: str | None,
    class_names: Path | None,
    out: Path,
    size: tuple[int, int] | None,
    rule: str | None,
    resize: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    scale: float | None,
    channel_order: ChannelOrder | None,
    **written: Any,
) -> None:
    """Write the artifact: one graph with the prediction and the map.

    The graph is compared with PyTorch before it is written; outside the tolerance nothing
    is written. The path is printed.
    """
    wait_asleep()
    needs_sigmoid = chosen["branch"] == "sigmoid" or written["sigmoid_logits"]
    if needs_sigmoid:
        check_branch_named(classifier)
    names = read_class_names(class_names) if class_names else ()
    check_writable(out)
    import_from_here()

    from sigcam.export import ExportOptions, export_artifact

    # Built before the model is loaded: what contradicts itself is told at once.
    options = ExportOptions(class_names=names, **chosen, **written)
    built = build_named(
        classifier, needs_sigmoid=needs_sigmoid, size=size, mean=mean, std=std, scale=scale,
        channel_order=channel_order,
    )  # fmt: skip
    preprocessing = changed_preprocessing(
        built.preprocessing, rule=rule, resize=resize, layout=_layout(layout, built.preprocessing)
    )
    say("exporting, and comparing with PyTorch")
    spec = export_artifact(built, out, replace(options, preprocessing=preprocessing))
    if spec.source.front is not None:
        say(spec.source.front)
    echo(str(out))
    if options.head_graph:
        echo(str(head_path(out)))


def _layout(name: str | None, preprocessing: Preprocessing) -> str | None:
    """Returns the layout that was asked for, or the raw one of the model's scale."""
    return preprocessing.raw.layout if name is None else LAYOUTS[name]


def read_class_names(path: Path) -> tuple[str, ...]:
    """Reads class names, one a line; blank lines at the end don't count.

    Args:
        path: a text file in UTF-8.

    Raises:
        UsageError: the file can't be read as text, or is empty.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "classes.txt")
        ...     with path.open("w") as stream:
        ...         print("cat", "dog", "owl", sep=chr(10), file=stream)
        ...     read_class_names(path)
        ('cat', 'dog', 'owl')
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"cannot read class names from {path}: {exc}") from exc
    if not lines:
        raise UsageError(f"{path} has no class names; write one per line")
    return tuple(line.strip() for line in lines)
