"""Fixtures of this folder's tests."""

from tests.support.tensorrt_machine import (  # noqa: F401 (fixtures)
    feeds,
    machine,
)
