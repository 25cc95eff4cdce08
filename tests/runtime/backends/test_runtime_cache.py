"""TensorRT-RTX's compiled kernels: kept from one process to the next, and never trusted blindly."""

from dataclasses import replace

import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.core.sidecar import read_sidecar
from sigcam.runtime.backends.tensorrt.runtime_cache import cache_file
from tests.support.fake_tensorrt import GPU, write_engine


@pytest.fixture
def rtx(machine):
    machine.install("tensorrt_rtx")
    machine.engine = write_engine(machine.folder, "tensorrt_rtx")
    return machine


def run(machine, feeds, **options):
    """Opens the engine, runs it until it is captured, closes it; returns what was cached then."""
    backend = machine.open(machine.engine, **options)
    for _ in range(2):
        outputs = backend.infer(feeds())
    backend.close()
    return outputs


def test_kernels_are_there_for_the_next_process(rtx, feeds, tmp_path):
    folder = tmp_path / "kernels"
    first = run(rtx, feeds, cache=folder)
    [file] = folder.iterdir()
    assert file == cache_file(read_sidecar(rtx.engine), GPU, folder)
    assert file.read_bytes() == b"ok eager lazy"  # of contexts for any shape, and for one
    file.write_bytes(b"ok eager from-before lazy")
    written = file.stat().st_mtime_ns
    second = run(rtx, feeds, cache=folder)
    assert file.stat().st_mtime_ns == written  # nothing new was compiled
    np.testing.assert_array_equal(first["logits"], second["logits"])


@pytest.mark.parametrize("damage", [b"", b"rubbish", b"\0" * 100])
def test_what_the_package_refuses_is_replaced(rtx, feeds, damage):
    file = cache_file(read_sidecar(rtx.engine), GPU, None)
    file.parent.mkdir(parents=True)
    file.write_bytes(damage)
    run(rtx, feeds)
    assert file.read_bytes() == b"ok eager lazy"


def test_other_engines_and_gpus_have_files_of_their_own(rtx):
    found = read_sidecar(rtx.engine)
    ours = cache_file(found, GPU, None)
    assert ours.parent == rtx.folder / "user" / "tensorrt-rtx"
    others = [
        cache_file(replace(found, sha256="0" * 64), GPU, None),
        cache_file(replace(found, version="1.8"), GPU, None),
        cache_file(found, replace(GPU, name="Another"), None),
    ]
    assert len({ours, *others}) == 4


def test_a_folder_that_cannot_be_written_is_told_and_no_more(rtx, feeds, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("x")
    outputs = run(rtx, feeds, cache=blocked / "folder")
    assert outputs["logits"].shape == (2, 4)
    assert "the compiled kernels can't be kept in" in caplog.text


def test_a_cache_that_would_do_nothing_is_refused(machine, tmp_path):
    with pytest.raises(UsageError, match=r"a cache has no effect on .*leave it out"):
        machine.open(cache=tmp_path)
