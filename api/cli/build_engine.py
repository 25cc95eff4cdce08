"""`sigcam build-engine`: an artifact compiled by TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sigcam.cli.common import echo, reports_errors, say
from sigcam.core.errors import UsageError

if TYPE_CHECKING:
    from sigcam.core.sidecar import EnginePrecision, Hardware

_MIB = 1 << 20


@click.command(name="build-engine")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The .engine file; beside MODEL under its name when left out.",
)
@click.option(
    "--min-batch", type=click.IntRange(min=1), default=1, show_default=True,
    help="Fewest images in one run.",
)  # fmt: skip
@click.option(
    "--opt-batch", type=click.IntRange(min=1), default=1, show_default=True,
    help="Images in one run that the engine is tuned for.",
)  # fmt: skip
@click.option(
    "--max-batch", type=click.IntRange(min=1), default=8, show_default=True,
    help="Most images in one run.",
)  # fmt: skip
@click.option(
    "--classes",
    metavar="MIN/OPT/MAX",
    help="Classes for each image, for an artifact exported with --classes input; 1/1/10 by "
    "default.",
)
@click.option(
    "--fp16", is_flag=True, help="The way to the logits in float16; maps stay in float32."
)
@click.option("--int8", is_flag=True, help="MODEL is quantised (QuantizeLinear nodes).")
@click.option("--tf32", is_flag=True, help="Let float32 products round to TF32.")
@click.option(
    "--workspace",
    type=click.IntRange(min=1),
    metavar="MIB",
    help="Most device memory for the intermediate values of one operation, in MiB.",
)
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path),
    help="File of timings that makes a second build faster; package tensorrt only.",
)
@click.option(
    "--package",
    type=click.Choice(["tensorrt", "tensorrt_rtx"]),
    help="Which TensorRT; the first of the two that is installed when left out.",
)
@click.option(
    "--capability",
    "capabilities",
    multiple=True,
    metavar="X.Y",
    help="Compute capability that the engine is for, such as 8.6; repeat it for several. "
    "Package tensorrt_rtx only; those of its list from 8.0 on when left out.",
)
@click.option(
    "--device", type=click.IntRange(min=0), default=0, show_default=True,
    help="Number of the GPU that the engine is built on, and for; package tensorrt only.",
)  # fmt: skip
@click.option(
    "--hardware",
    type=click.Choice(["gpu", "capability", "ampere"]),
    default="gpu",
    show_default=True,
    help="What the engine runs on beside GPUs of the model that it is built on: all of its compute "
    "capability, or all from 8.0 on; package tensorrt only.",
)
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Later versions of the same major version of TensorRT run the engine, too; package "
    "tensorrt only.",
)
@click.option(
    "--from-plan",
    "plan",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Builds nothing: takes this plan, which trtexec built of MODEL, compares it with MODEL on "
    "the GPU, and writes it with its sidecar. Say with the other options how it was built.",
)
@reports_errors
def command(
    model: Path,
    out: Path | None,
    min_batch: int,
    opt_batch: int,
    max_batch: int,
    classes: str | None,
    fp16: bool,
    int8: bool,
    tf32: bool,
    workspace: int | None,
    timing_cache: Path | None,
    package: str | None,
    capabilities: tuple[str, ...],
    device: int,
    hardware: Hardware,
    version_compatible: bool,
    plan: Path | None,
) -> None:
    """Build the TensorRT engine of MODEL, and its sidecar.

    The package tensorrt builds on the GPU that the engine is for; tensorrt_rtx on any
    machine. Both engines keep what MODEL's spec says in ENGINE.json. The engine's path is
    printed.
    """
    from sigcam.convert.tensorrt.build import build_engine
    from sigcam.convert.tensorrt.options import BuildOptions, Range

    if fp16 and int8:
        raise UsageError("--fp16 and --int8 exclude each other: a quantised graph has its types")
    precision: EnginePrecision = "float16" if fp16 else "int8" if int8 else "float32"
    options = BuildOptions(
        batches=Range(min_batch, opt_batch, max_batch),
        classes=None if classes is None else Range.parse(classes),
        precision=precision,
        tf32=tf32,
        workspace=None if workspace is None else workspace * _MIB,
        timing_cache=timing_cache,
        package=package,
        capabilities=capabilities,
        device=device,
        hardware=hardware,
        version_compatible=version_compatible,
    )
    if plan is not None:
        from sigcam.convert.tensorrt.adopt import adopt_plan

        say(f"comparing {plan} with {model}")
        echo(str(adopt_plan(model, plan, out, options)))
        return
    say(f"building the engine of {model}")
    echo(str(build_engine(model, out, options, progress=True)))
