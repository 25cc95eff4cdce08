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
    model_options,
    preprocessing_options,
    reports_errors,
    say,
)
from sigcam.core.artifact import head_path
from sigcam.core.errors import UsageError
from sigcam.core.files import check_writable

LAYOUTS = {"uint8": "uint8_nhwc", "float32": "float32_nchw"}

_NO_BRANCH = (
    "the sigmoid branch needs --sigmoid-branch FILE (from `sigcam train`), or --weights with a "
    "checkpoint that holds one; --branch softmax exports the classic CAM without one"
)


@click.command(name="export")
@model_options
@click.option(
    "--sigmoid-branch",
    "branch_file",
    type=click.Path(path_type=Path),
    help="Trained branch, from `sigcam train`; it also knows the architecture and weights.",
)
@click.option(
    "--branch",
    type=click.Choice(["sigmoid", "softmax"]),
    default="sigmoid",
    show_default=True,
    help="Branch that the CAM weights come from; softmax is the classic CAM.",
)
@click.option(
    "--target-layer",
    "target_layers",
    multiple=True,
    help="Layer that the map is made of; found by itself when left out. Repeat it to fuse the "
    "maps of several layers.",
)
@click.option(
    "--method",
    default="cam",
    show_default=True,
    help="cam, gradcam, gradcam++, xgradcam, layercam, hirescam or finercam.",
)
@click.option(
    "--nwc/--no-nwc",
    default=None,
    help="Clamp negative weights: yes by default, but for layercam and hirescam.",
)
@click.option("--gamma", type=float, help="Strength of finercam's contrast; 0.6 by default.")
@click.option("--similar", type=int, help="Classes that finercam compares with; 3 by default.")
@click.option(
    "--profile",
    type=click.Choice(["fused", "split"]),
    default="fused",
    show_default=True,
    help="Finished CAMs out of the graph, or features and CAM weights.",
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
    default="uint8",
    show_default=True,
    help="Raw RGB bytes [B, H, W, 3], or normalised float32 [B, 3, H, W].",
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
    arch: str | None,
    weights: str | None,
    num_classes: int | None,
    target_layers: tuple[str, ...],
    branch_file: Path | None,
    layout: str,
    class_names: Path | None,
    out: Path,
    gamma: float | None,
    similar: int | None,
    size: int | None,
    rule: str | None,
    resize: int | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    **chosen: Any,
) -> None:
    """Write the artifact: one graph with the prediction and the map.

    The graph is compared with PyTorch before it is written; outside the tolerance nothing
    is written. The path is printed.
    """
    needs_sigmoid = chosen["branch"] == "sigmoid" or chosen["sigmoid_logits"]
    if needs_sigmoid and branch_file is None and not (weights and Path(weights).is_file()):
        raise UsageError(_NO_BRANCH)
    names = read_class_names(class_names) if class_names else ()
    check_writable(out)
    import_from_here()

    from sigcam.classifier.build import build_classifier
    from sigcam.export import ExportOptions, export_artifact

    # Built before the model is loaded: what contradicts itself is told at once.
    numbers = {"gamma": gamma, "similar": similar}
    options = ExportOptions(
        class_names=names,
        method_options={name: value for name, value in numbers.items() if value is not None},
        **chosen,
    )
    say("loading the model")
    built = build_classifier(
        arch,
        branch_file=branch_file,
        weights=weights,
        num_classes=num_classes,
        target_layers=target_layers,
        size=size,
    )
    if needs_sigmoid and not built.has_sigmoid:
        raise UsageError(f"{weights} holds no sigmoid branch for this model; {_NO_BRANCH}")
    if built.checkpoint is not None:
        say(f"the sigmoid branch is the one in {built.checkpoint}")
    preprocessing = changed_preprocessing(
        built.preprocessing, rule=rule, resize=resize, mean=mean, std=std, layout=LAYOUTS[layout]
    )
    say("exporting, and comparing with PyTorch")
    export_artifact(built, out, replace(options, preprocessing=preprocessing))
    echo(str(out))
    if options.head_graph:
        echo(str(head_path(out)))


def read_class_names(path: Path) -> tuple[str, ...]:
    """Reads class names, one a line; blank lines at the end don't count.

    Args:
        path: a text file in UTF-8.

    Raises:
        UsageError: the file can't be read as text, or is empty.
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"cannot read class names from {path}: {exc}") from exc
    if not lines:
        raise UsageError(f"{path} has no class names; write one per line")
    return tuple(line.strip() for line in lines)
