"""As much of PyCUDA as the examples use, on the driver without a GPU."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np

from sigcam.kernels import driver


class Stream:
    """A stream with PyCUDA's attribute for its number."""

    def __init__(self):
        self._stream = driver.Stream()
        self.handle = self._stream.handle

    def synchronize(self):
        driver.synchronize(self.handle)


class GPUArray:
    """Names no stream, as PyCUDA's."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.nbytes = int(np.prod(shape)) * self.dtype.itemsize
        self._buffer = driver.DeviceBuffer(self.nbytes)

    @property
    def __cuda_array_interface__(self):
        steps = [self.dtype.itemsize]
        for size in reversed(self.shape[1:]):
            steps.insert(0, steps[0] * size)
        return {
            "shape": self.shape, "strides": tuple(steps), "data": (self._buffer.address, False),
            "typestr": self.dtype.str, "stream": None, "version": 3,
        }  # fmt: skip

    def get_async(self, stream):
        host = np.empty(self.shape, self.dtype)
        driver.copy_to_host(host, self._buffer.address, self.nbytes, stream.handle)
        return host


class _Pushed:
    def __init__(self):
        self._context = driver.retain_primary_context(0)
        self._context.__enter__()

    def pop(self):
        self._context.__exit__()
        self._context.close()


class _Retained:
    """Isn't current before it is pushed."""

    def push(self):
        self._pushed = _Pushed()

    def pop(self):
        self._pushed.pop()


def to_gpu_async(host, stream):
    array = GPUArray(host.shape, host.dtype)
    driver.copy_to_device(array._buffer.address, host, host.nbytes, stream.handle)
    return array


class _Device:
    def __init__(self, ordinal):
        driver.device(ordinal)

    def make_context(self):
        return _Pushed()

    def retain_primary_context(self):
        return _Retained()


def install(monkeypatch):
    """Makes `import pycuda` find this."""
    package, cuda, gpuarray = (ModuleType(f"pycuda{name}") for name in ("", ".driver", ".gpuarray"))
    cuda.Error, cuda.Stream, cuda.Device, cuda.init = (
        RuntimeError,
        Stream,
        _Device,
        driver.available,
    )
    gpuarray.to_gpu_async, gpuarray.empty = to_gpu_async, GPUArray
    package.driver, package.gpuarray = cuda, gpuarray
    for module in (package, cuda, gpuarray):
        monkeypatch.setitem(sys.modules, module.__name__, module)
