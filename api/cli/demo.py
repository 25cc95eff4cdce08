"""`sigcam demo`: real photographs through a real network, on one page."""

from __future__ import annotations

from pathlib import Path

import click

from sigcam.cli.common import echo, reports_errors, say


@click.command(name="demo")
@click.argument("images", nargs=-1)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("sigcam-demo"),
    show_default=True,
    help="Folder for the page and the exported graphs.",
)
@reports_errors
def command(images: tuple[str, ...], out: Path) -> None:
    """Explain IMAGES (files, folders, globs) and write a page about it.

    Without images, the photographs that scikit-image ships are used. The page's path
    is printed.
    """
    from sigcam.cli.explain.find import STANDARD_INPUT, find_images
    from sigcam.cli.explain.output import print_left_out
    from sigcam.core.errors import UsageError
    from sigcam.core.inputs import keep
    from sigcam.demo.images import shipped_images
    from sigcam.demo.run import run_demo

    found = find_images(images, written=out)
    print_left_out(found.left_out, as_json=False)
    if images:
        found.check()
    if any(image is STANDARD_INPUT for image in found.images):
        raise UsageError("the demo names its images, and - has no name; name files")
    keep(found.images)
    echo(str(run_demo(found.images or shipped_images(), out, say)))
