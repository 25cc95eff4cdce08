"""What the tests of the backend openvino share."""

import numpy as np

from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.backends.openvino.backend import OpenVinoBackend

RNG = np.random.default_rng(3)


def opened(path, **options):
    return OpenVinoBackend.open(path, BackendOptions(threads=1, **options))


def feeds_of(batch, k):
    image = RNG.integers(0, 256, (batch, 56, 56, 3), dtype=np.uint8)
    return {"image": image, "class_ids": RNG.integers(-4, 4, (batch, k))}


def same(got, wanted):
    assert got.keys() == wanted.keys()
    for name, array in got.items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-5, atol=1e-6)


def computes_in(backend):
    hint = backend._requests._compiled.get_property("INFERENCE_PRECISION_HINT")
    return hint.get_type_name()
