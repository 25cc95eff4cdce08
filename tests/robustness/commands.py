"""Runs the command line in this process, and says what a user would call a fault of it."""

from __future__ import annotations

from typing import Any

from click import Command
from click.testing import CliRunner, Result

from sigcam.core.errors import SigcamError
from tests.robustness.target import Fault, shortened


def run_command(main: Command, *arguments: Any) -> Result:
    """Runs a command; it must end by an exit code, and where it fails with one sentence.

    Returns:
        What it printed, if it succeeded.

    Raises:
        SigcamError: it failed and said why.
        Fault: it ended by an exception, or failed without a word.
    """
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    error = done.exception
    if error is not None and not isinstance(error, SystemExit):
        raise Fault("traceback", f"{arguments[0]}: {type(error).__name__}: {error}") from error
    last = done.stderr.strip().splitlines()[-1:]
    if done.exit_code and not (last and last[0].lower().startswith("error: ")):
        raise Fault("message", f"{arguments[0]} failed and said {shortened(done.stderr)!r}")
    if done.exit_code:
        raise SigcamError(last[0])
    return done
