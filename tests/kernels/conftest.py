"""What the kernels' tests need."""

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def only_new_objects_are_collected():
    """Many tests collect garbage; what other tests imported would be gone through each time."""
    gc.freeze()
    yield
    gc.unfreeze()
