"""Fixtures of this folder's tests."""

from tests.support.sessions import make_artifact  # noqa: F401 (a fixture)
