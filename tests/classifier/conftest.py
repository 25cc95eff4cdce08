"""Fixtures of this folder's tests."""

from tests.support.toy import (  # noqa: F401 (fixtures)
    augmentation,
    data,
    folder,
    make_dual,
    make_model,
    preprocessing,
    toy,
    views,
)
