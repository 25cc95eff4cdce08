"""The commands of README and docs exist, with the options that they are given."""

from __future__ import annotations

import importlib
import re
import shlex

import click
import pytest

from sigcam.cli import main
from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINE = re.compile(
    r"^    (?:\$ )?((?:sigcam |python -m benchmarks\.)(?:[^\n\\]|\\\n)*)", re.MULTILINE
)


def commands():
    """(page, words) of every command line in an indented block."""
    found = []
    for page in PAGES:
        for text in LINE.findall(page.read_text(encoding="utf-8")):
            text = re.sub(r"\\\n\s*", " ", text).split("  #")[0]
            if "..." not in text and "[" not in text:
                found.append(pytest.param(shlex.split(text), id=f"{page.name}-{text[:60]}"))
    return found


@pytest.mark.parametrize("words", commands())
def test_a_command_is_understood(words):
    """By click, up to where it would begin to work: no option is unknown, no argument missing."""
    if words[0] == "sigcam":
        command, rest = main, words[1:]
        command = main.get_command(click.Context(main), rest[0])
        assert command is not None, f"there is no command {rest[0]}"
        rest = rest[1:]
    else:
        module = importlib.import_module(words[2])
        if hasattr(module, "__path__"):  # a package that is run
            module = importlib.import_module(f"{words[2]}.__main__")
        command, rest = getattr(module, "main", None), words[3:]
        if not isinstance(command, click.Command):
            assert not rest, f"{words[2]} takes no options"
            return
    rest = rest[: next((i for i, word in enumerate(rest) if word in ("|", ">", "&&")), len(rest))]
    while isinstance(command, click.Group):
        command, rest = command.get_command(click.Context(command), rest[0]), rest[1:]
        assert command is not None
    command.make_context(command.name, list(rest))
