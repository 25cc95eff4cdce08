"""`sigcam verify`: whether model files are what was written."""

from __future__ import annotations

from pathlib import Path

import click

from sigcam.cli.common import EXIT_FAILED, echo, echo_json, fail, reports_errors


@click.command(name="verify")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object for each file, one a line."
)
@reports_errors
def command(files: tuple[Path, ...], as_json: bool) -> None:
    """Check that FILES are what sigcam wrote, by the digests that they carry.

    FILES are artifacts, quantised ones too, with their weights (.onnx.data) and head graph beside
    them, head graphs, TensorRT engines with their sidecar, branch files, addresses on the Hugging
    Face Hub (hf://OWNER/NAME), and folders, which are searched for all of these. One line for each
    is printed: OK, kind and digest, or FAILED and what is wrong. The exit code is 1 where one
    fails.
    """
    from sigcam.core.verify import check_files
    from sigcam.hub.pull import local

    checked = check_files([local(file) for file in files])
    for one in checked:
        if as_json:
            echo_json(one.to_dict())
        elif one.error is None:
            echo(f"{one.file}: OK, {one.kind}, {one.digest}")
        else:
            echo(f"{one.file}: FAILED, {one.error}")
    bad = sum(one.error is not None for one in checked)
    if bad:
        fail(f"{bad} of {len(checked)} files are not what was written, or missing", EXIT_FAILED)
