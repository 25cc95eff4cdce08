"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorated = Callable[..., Any]

_DATA = (
    click.argument("data", type=click.Path(path_type=Path)),
    click.option("--format", "form", default="auto", help="As of sigcam evaluate."),
    click.option("--split", help="Of DATA."),
    click.option("--seed", type=int, default=0),
)
_NETWORK = (
    click.option("--arch", required=True, help="As of sigcam train."),
    click.option("--weights", required=True, help="The same; {fold} in it is the fold's number."),
    click.option("--num-classes", type=int, help="Of the classifier, where not the usual number."),
    click.option("--size", type=int, help="Input side."),
)


def data_options(command: Decorated) -> Decorated:
    """Passes `data`, `form`, `split` and `seed`."""
    return _with(command, _DATA)


def network_options(command: Decorated) -> Decorated:
    """Passes `arch`, `weights`, `num_classes` and `size`."""
    return _with(command, _NETWORK)


def _with(command: Decorated, options: tuple[Callable[[Decorated], Decorated], ...]) -> Decorated:
    for option in reversed(options):
        command = option(command)
    return command
