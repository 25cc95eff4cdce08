"""`sigcam quantize`: converts an artifact to 8 or 16 bits, with what it costs in its spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sigcam.cli.common import echo, reports_errors, say
from sigcam.core.progress import somebody_waits


@click.command(name="quantize")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of images of the kind that the model will see, subfolders included.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The new .onnx file.")
@click.option(
    "--precision",
    type=click.Choice(["int8", "int8-head", "fp16", "bf16"]),
    default="int8",
    show_default=True,
    help="int8: backbone and softmax head compute in 8 bits; int8-head: the large matrices of the "
    "sigmoid branch are stored in 8 bits, and the prediction keeps every bit; fp16, bf16: weights "
    "are stored in 16 bits and computed with in float32, half the file.",
)
@click.option(
    "--calibration", type=int, default=128, show_default=True,
    help="Number of images that the ranges of int8 are taken from.",
)  # fmt: skip
@click.option(
    "--held-out", type=int, default=128, show_default=True,
    help="Number of further images, that the result is compared with float32 on.",
)  # fmt: skip
@click.option(
    "--calibration-method",
    "method",
    type=click.Choice(["minmax", "entropy", "percentile"]),
    default="minmax",
    show_default=True,
    help="Which range of values is kept: all of them, the one that loses least, or 99.99%.",
)
@click.option(
    "--activations",
    type=click.Choice(["uint8", "int8"]),
    default="uint8",
    show_default=True,
    help="Type of the values between layers: uint8 with a zero point, best on a CPU; int8 "
    "symmetric, the only ones that TensorRT takes.",
)
@click.option(
    "--wide-weights",
    is_flag=True,
    help="8 bits for all weights instead of 7. For processors with VNNI, Arm and GPUs: with AVX2 "
    "or AVX-512 alone, sums overflow.",
)
@click.option(
    "--keep-float", multiple=True, metavar="LAYER", help="Keep this layer in float32; repeats."
)
@click.option(
    "--rounds", type=click.IntRange(min=0), default=3, show_default=True,
    help="How often the layers with the largest rounding errors are kept in float32 before giving "
    "up.",
)  # fmt: skip
@click.option(
    "--min-agreement", type=click.FloatRange(0, 1), default=0.99, show_default=True,
    help="Smallest share of held-out images with the same prediction.",
)  # fmt: skip
@click.option(
    "--min-correlation", type=click.FloatRange(-1, 1), default=0.98, show_default=True,
    help="Smallest mean correlation of the CAMs.",
)  # fmt: skip
@click.option(
    "--head",
    type=click.Path(path_type=Path),
    help="Head graph, where it isn't MODEL's name with .head.onnx.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the backend.")
@click.option("--seed", type=int, default=0, show_default=True, help="What images are chosen with.")
@reports_errors
def command(model: Path, data: Path, out: Path, head: Path | None, **options: Any) -> None:
    """Convert MODEL to another precision, measured against float32 on held-out images.

    The sigmoid branch, CAM weights and sums of the CAMs compute in float32 (but for int8-head).
    Below the limits, int8 keeps the layers with the largest rounding errors in float32 too; if
    that doesn't do, nothing is written. What it costs is in the spec, see `sigcam info`. The paths
    of the files that were written are printed.
    """
    from sigcam.convert.quantize import QuantizeOptions, quantize_artifact

    options["keep_float"] = tuple(options["keep_float"])
    spec, written = quantize_artifact(
        model,
        data,
        out,
        QuantizeOptions(**options),
        head=head,
        progress=somebody_waits(),
        say=say,
    )
    if spec.head_input is not None and len(written) == 1:
        say(f"there is no head graph beside {model}; to use one, pass it as --head to explain")
    for path in written:
        echo(str(path))
