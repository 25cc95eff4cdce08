"""The command line: one file per command, each imported only when it is called."""

from __future__ import annotations

import importlib
import os
from typing import Any

import click

from sigcam.cli.streams import ends_in_order
from sigcam.core.versions import __version__

# Command name to (module, one line of help): so that `sigcam --help` imports no command.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("train", "Train the sigmoid branch of a classifier."),
    "inspect": ("inspect", "Print what is in a classifier's .onnx file, and what can be exported."),
    "export": ("export", "Write the ONNX artifact: prediction and map in one graph."),
    "quantize": ("quantize", "Convert an artifact to 8 or 16 bits, and measure what it costs."),
    "build-engine": ("build_engine", "Compile an artifact with TensorRT."),
    "export-repository": ("export_repository", "Write a model repository for another server."),
    "explain": ("explain.command", "Predict and explain images with an artifact."),
    "serve": ("serve", "Serve predictions and maps over the Open Inference Protocol."),
    "evaluate": ("evaluate", "Score the maps of artifacts on a data set, and report."),
    "sanity": ("sanity", "Check that the map depends on what the network learnt."),
    "push": ("hub", "Publish an artifact on the Hugging Face Hub."),
    "pull": ("hub", "Get an artifact from the Hugging Face Hub."),
    "verify": ("verify", "Check that model files are what was written."),
    "info": ("info", "Print the spec and parity report of an artifact."),
    "kernels": ("kernels", "Compile the CUDA kernels ahead of time, or list what runs them."),
    "demo": ("demo", "Explain real photographs and write a page about it."),
}


class _LazyGroup(click.Group):
    """A group that imports a command's module when the command is asked for.

    All commands end by it where their output or their user stops them.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Runs a command of the command line, `sys.argv` by default."""
        with ends_in_order():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; inside of `main`, before click sees what stopped it."""
        with ends_in_order():
            return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # A shell expands "~" where a word begins with it: neither in quotes nor in --out=~/maps.
        return super().parse_args(ctx, [_with_home(one) for one in args])

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        name, _ = COMMANDS[cmd_name]
        module = importlib.import_module(f"sigcam.cli.{name}")
        # A module with several commands calls each of them by its name.
        own = getattr(module, f"{cmd_name}_command", None)
        command: click.Command = own or module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _with_home(argument: str) -> str:
    option, equals, value = argument.partition("=")
    if equals and option.startswith("--"):
        return f"{option}={os.path.expanduser(value)}"  # noqa: PTH111 (of nobody: stays as it is)
    return os.path.expanduser(argument)  # noqa: PTH111


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="sigcam")
def main() -> None:
    """Ship the evidence map with the prediction.

    Results go to standard output, everything else to standard error. Exit codes: 0 done,
    1 the work, or a part of it, failed, 2 wrong usage, 130 stopped by Ctrl-C, 141 the reader
    of standard output has gone.
    """
