"""`sigcam export-repository`: models for another server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sigcam.cli.common import echo, reports_errors, say

if TYPE_CHECKING:
    from sigcam.repositories.options import Server


@click.command(name="export-repository")
@click.argument("models", nargs=-1, required=True, metavar="[NAME=]MODEL...")
@click.argument("out", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "server",
    required=True,
    type=click.Choice(["triton", "kserve", "ovms", "ray"]),
    help="The server: NVIDIA Triton, KServe, OpenVINO Model Server or Ray Serve.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=8, show_default=True,
    help="Most images in one run (triton, kserve, ray).",
)  # fmt: skip
@click.option(
    "--batch-delay", type=click.IntRange(min=0), default=0, show_default=True,
    metavar="MICROSECONDS",
    help="How long a request waits for others to be run with it; with 0, what is there is run "
    "together (triton, kserve, ray).",
)  # fmt: skip
@click.option(
    "--queue-requests", type=click.IntRange(min=1), default=256, show_default=True,
    help="Most requests that wait; the server refuses further ones (triton, kserve, ray).",
)  # fmt: skip
@click.option(
    "--instances", type=click.IntRange(min=1), default=1, show_default=True,
    help="Copies of a model on one machine (triton, ray); requests run at once (ovms); processors "
    "of a replica (kserve).",
)  # fmt: skip
@click.option(
    "--image", default="sigcam:latest", show_default=True,
    help="Container image, made with examples/deployment/Dockerfile (kserve).",
)  # fmt: skip
@click.option(
    "--replace", is_flag=True,
    help="Replace a repository that this command wrote to DIR before; no other folder.",
)  # fmt: skip
@reports_errors
def command(
    models: tuple[str, ...],
    out: Path,
    server: Server,
    batch_size: int,
    batch_delay: int,
    queue_requests: int,
    instances: int,
    image: str,
    replace: bool,
) -> None:
    """Write a folder DIR from which another server runs each MODEL.

    MODEL is an .onnx or .engine file or an address on the Hub, and is called by the file's name
    or by NAME. DIR must not exist or be empty, and appears whole or not at all. Its path is
    printed.
    """
    from sigcam.repositories.options import RepositoryOptions
    from sigcam.repositories.write import export_repository

    options = RepositoryOptions(batch_size, batch_delay, queue_requests, instances, image)
    say(f"writing {len(models)} model{'s' if len(models) > 1 else ''} to {out} for {server}")
    echo(str(export_repository(list(models), out, server, options, replace=replace)))
