"""Fixtures of this folder's tests."""

from tests.support.tensorrt_machine import feeds, machine  # noqa: F401 (fixtures)
