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
    from sigcam.cli.explain.images import find_images
    from sigcam.demo.images import shipped_images
    from sigcam.demo.run import run_demo

    found = list(find_images(images)) or shipped_images()
    echo(str(run_demo(found, out, say)))
