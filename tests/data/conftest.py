"""Fixtures of this folder's tests."""

from tests.support.toy import folder  # noqa: F401 (a fixture)
