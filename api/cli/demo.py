"""`sigcam demo`: real photographs through a real network, on one page."""

from __future__ import annotations

from pathlib import Path

import click

from sigcam.cli.common import echo, reports_errors, say


@click.command(name="demo")
@click.argument("pictures", nargs=-1)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("sigcam-demo"),
    show_default=True,
    help="Folder for the page and the exported graphs.",
)
@reports_errors
def command(pictures: tuple[str, ...], out: Path) -> None:
    """Explain PICTURES (files, folders, globs) and write a page about it.

    Without pictures, the photographs that scikit-image ships are used. The page's path
    is printed.
    """
    from sigcam.cli.explain.images import find_pictures
    from sigcam.demo.pictures import shipped_pictures
    from sigcam.demo.run import run_demo

    found = list(find_pictures(pictures)) or shipped_pictures()
    echo(str(run_demo(found, out, say)))
