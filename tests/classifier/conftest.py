"""Fixtures of this folder's tests."""

from tests.support.toy import (  # noqa: F401 (fixtures)
    data,
    folder,
    geometry,
    make_dual,
    make_model,
    toy,
    views,
)
