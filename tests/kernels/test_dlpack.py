"""DLPack capsules against NumPy's, on the CPU, and the intake of arrays."""

from __future__ import annotations

import ctypes
import gc
import weakref

import numpy as np
import pytest

from sigcam.kernels import dlpack
from sigcam.kernels.arrays import taken
from sigcam.kernels.dlpack import CPU, CUDA

KINDS = [np.float32, np.float16, np.uint8, np.int64, np.bool_]


class Owner:
    """Memory whose end can be watched."""

    def __init__(self, array):
        self.array = array


class Ours:
    """A NumPy array handed out through our capsules."""

    def __init__(self, array, *, read_only=False):
        self.owner = Owner(array)

    def __dlpack_device__(self):
        return CPU, 0

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        array = self.owner.array
        return dlpack.give(
            array.ctypes.data, array.shape, array.dtype, (CPU, 0), self.owner,
            versioned=max_version is not None,
        )  # fmt: skip


class Old:
    """A library from before DLPack 1.0, which doesn't know `max_version`."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return CPU, 0

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__()


def contents(view):
    memory = (ctypes.c_char * (int(np.prod(view.shape)) * view.dtype.itemsize)).from_address(
        view.address
    )
    return np.frombuffer(memory, view.dtype).reshape(view.shape).copy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 3, 4), (5,), ()])
@pytest.mark.parametrize("wrapped", [lambda a: a, Old, Ours])
def test_taken_from_others(kind, shape, wrapped):
    array = (np.arange(np.prod(shape, dtype=int)) % 2).astype(kind).reshape(shape)
    with taken(wrapped(array), "x", 0, 0, CPU) as view:
        assert (view.shape, view.dtype) == (shape, np.dtype(kind))
        np.testing.assert_array_equal(contents(view), array)


@pytest.mark.parametrize("kind", KINDS)
def test_given_to_numpy(kind):
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    ours = Ours(array.copy())
    end = weakref.ref(ours.owner)
    theirs = np.from_dlpack(ours)
    del ours
    gc.collect()
    np.testing.assert_array_equal(theirs, array)
    assert end() is not None  # the taker keeps it
    del theirs
    gc.collect()
    assert end() is None


def test_there_and_back_with_torch():
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6, dtype=torch.float16).reshape(2, 3)
    with taken(tensor, "x", 0, 0, CPU) as view:
        np.testing.assert_array_equal(contents(view), tensor.numpy())
    flags = np.array([True, False])
    theirs = torch.from_dlpack(Ours(flags))
    assert theirs.dtype == torch.bool
    assert theirs.tolist() == [True, False]


@pytest.mark.parametrize("versioned", [True, False])
def test_a_capsule_that_nobody_takes(versioned):
    ours = Ours(np.zeros(3))
    end = weakref.ref(ours.owner)
    capsule = ours.__dlpack__(max_version=(1, 0) if versioned else None)
    del ours
    gc.collect()
    assert end() is not None
    del capsule
    gc.collect()
    assert end() is None


@pytest.mark.parametrize("versioned", [True, False])
def test_the_deleter_is_called_once(versioned):
    """Counted in a capsule whose deleter is the test's."""
    array = np.zeros((2, 2), np.float32)
    deleted = []

    @dlpack._Deleter
    def deleter(address):
        deleted.append(address)

    capsule = Ours(array).__dlpack__(max_version=(1, 0) if versioned else None)
    name = b"dltensor_versioned" if versioned else b"dltensor"
    managed = dlpack._STRUCTURES[name].from_address(dlpack._pointer(capsule, name))
    ours, managed.deleter = managed.deleter, deleter
    found = dlpack.take(capsule)
    with pytest.raises(TypeError, match="nobody has taken"):
        dlpack.take(capsule)
    assert deleted == []
    found.release()
    address = ctypes.addressof(managed)
    del capsule, found
    gc.collect()
    assert deleted == [address]
    ours(address)


def test_released_when_the_block_fails():
    ours = Ours(np.zeros(3))
    end = weakref.ref(ours.owner)
    with pytest.raises(RuntimeError, match="inside"), taken(ours, "x", 0, 0, CPU):
        raise RuntimeError("inside")
    del ours
    gc.collect()
    assert end() is None


def test_read_only():
    array = np.zeros(3)
    with taken(array, "x", 0, 0, CPU) as view:
        assert not view.read_only
    array.flags.writeable = False
    with taken(array, "x", 0, 0, CPU) as view:
        assert view.read_only


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4)).T, "C-contiguous"),
        (np.zeros((4, 6))[:, :3], "C-contiguous"),
        (np.zeros(4, np.complex64), "type code 5"),
    ],
)
def test_refused(array, message):
    with pytest.raises(ValueError, match=message), taken(array, "weights", 0, 0, CPU):
        pass


def test_axes_of_one_may_have_any_stride():
    with taken(np.zeros((4, 6))[:, :6][None, ::4], "x", 0, 0, CPU) as view:
        assert view.shape == (1, 1, 6)


def test_another_major_version():
    capsule = Ours(np.zeros(3)).__dlpack__(max_version=(1, 0))
    name = b"dltensor_versioned"
    managed = dlpack._STRUCTURES[name].from_address(dlpack._pointer(capsule, name))
    managed.major = 2
    with pytest.raises(ValueError, match=r"got a capsule of 2\.0"):
        dlpack.take(capsule)


def test_not_on_the_gpu():
    with (
        pytest.raises(ValueError, match=r"features must lie in the GPU's memory \(DLPack device"),
        taken(np.zeros(3), "features", 0, 0, CUDA),
    ):
        pass


def test_a_byte_offset_counts():
    capsule = Ours(np.arange(4, dtype=np.float32)).__dlpack__()
    managed = dlpack._STRUCTURES[b"dltensor"].from_address(dlpack._pointer(capsule, b"dltensor"))
    managed.tensor.byte_offset = 8
    plain = managed.tensor.data
    found = dlpack.take(capsule)
    assert found.address == plain + 8
    found.release()


def test_layouts_of_the_specification():
    """Sizes and offsets of dlpack.h on 64-bit platforms."""
    assert ctypes.sizeof(dlpack._Tensor) == 48
    assert ctypes.sizeof(dlpack._Managed) == 64
    assert ctypes.sizeof(dlpack._Versioned) == 80
    offsets = {
        name: getattr(dlpack._Versioned, name).offset for name, *_ in dlpack._Versioned._fields_
    }
    assert offsets == {
        "major": 0, "minor": 4, "context": 8, "deleter": 16, "flags": 24, "tensor": 32,
    }  # fmt: skip


def test_a_taker_that_refuses_keeps_its_error_and_the_memory_is_freed():
    class OnGpu(Ours):
        def __dlpack_device__(self):
            return CUDA, 0

        def __dlpack__(self, **options):
            versioned = options.get("max_version") is not None
            array = self.owner.array
            return dlpack.give(
                array.ctypes.data, array.shape, array.dtype, (CUDA, 0), self.owner,
                versioned=versioned,
            )  # fmt: skip

    ours = OnGpu(np.zeros(3, np.float32))
    end = weakref.ref(ours.owner)
    with pytest.raises((RuntimeError, BufferError), match=r"[Uu]nsupported device"):
        np.from_dlpack(ours)
    del ours
    gc.collect()
    assert end() is None
