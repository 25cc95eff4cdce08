"""What all tests need."""

import signal

import hypothesis
import pytest

from tests.support.exporter import read_operators_once

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """Some tests send Ctrl-C, which a job in a shell's background starts with ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item):
    """Spares every export but the first what the exporter would read again."""
    del item
    read_operators_once()
