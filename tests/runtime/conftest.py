"""Fixtures of this folder's tests."""

from tests.support.sessions import (  # noqa: F401 (fixtures)
    fake_session,
    fake_split_session,
    jpeg,
    make_artifact,
    spec_of,
    stored,
)
