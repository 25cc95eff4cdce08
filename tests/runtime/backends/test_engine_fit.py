"""Whether an engine is the one that its sidecar describes, and can run here."""

from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sigcam.core.errors import ArtifactError, BackendUnavailableError
from sigcam.core.model_file import ModelFile
from sigcam.core.sidecar import read_sidecar, sidecar_path
from sigcam.core.verify import engine_bytes
from sigcam.runtime.backends.tensorrt.engine import check_fit, check_source
from sigcam.runtime.backends.tensorrt.package import TensorRTPackage
from sigcam.runtime.model import ExportedModel
from tests.support.fake_tensorrt import GPU, VERSION, ComputeCapability, altered, write_engine

REBUILD = r"sigcam build-engine model\.onnx --package tensorrt --max-batch 4 --classes 1/1/3"


@pytest.fixture
def engine(tmp_path):
    return write_engine(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "not the file that its sidecar is for; copy both files again"),
        ({"size": 3}, "its sidecar is for one of 3"),
        ({"version": "10.13.3.8"}, rf"built by tensorrt 10\.13\.3\.8.*installed is .*{REBUILD}"),
        ({"platform": "Linux aarch64"}, rf"was built on Linux aarch64.*{REBUILD}"),
        ({"capabilities": ["8.7"]}, rf"capability 8\.7, this GPU has 8\.6; run `{REBUILD}`"),
        ({"gpu": "Fake GPU Ti"}, rf"built on Fake GPU Ti, this GPU is Fake GPU, .*{REBUILD}"),
        ({"shapes": {"image": [[1, 9]] * 3, "class_ids": [[1, 1]] * 3}}, "must have 4 sizes"),
        ({"shapes": {"image": [[1, 9, 9, 3]] * 3, "class_ids": [[1, 1]] * 3}}, "its sidecar says"),
        ({"source_sha256": "1" * 64}, r"another model\.onnx than the one beside it"),
    ],
)  # fmt: skip
def test_a_field_that_does_not_fit_this_machine(machine, engine, changes, message):
    machine.open(engine)
    altered(sidecar_path(engine), **changes)
    with pytest.raises(ArtifactError, match=message):
        machine.open(engine)


def test_a_package_that_is_not_installed(machine, tmp_path):
    engine = write_engine(tmp_path, "tensorrt_rtx")
    machine.uninstall("tensorrt_rtx")
    with pytest.raises(BackendUnavailableError, match="tensorrt-rtx-cu13"):
        machine.open(engine)


def test_an_engine_that_was_changed(machine, engine):
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(data)
    with pytest.raises(ArtifactError, match="not the file that its sidecar is for"):
        machine.open(engine)


@pytest.mark.parametrize("which", ["engine", "sidecar"])
def test_files_that_change_while_loading(machine, engine, which, monkeypatch):
    file = engine if which == "engine" else sidecar_path(engine)
    check = ModelFile.check_unchanged

    def replaced(self):
        copy = file.with_name("copy")
        copy.write_bytes(file.read_bytes())
        copy.replace(file)
        check(self)

    monkeypatch.setattr(ModelFile, "check_unchanged", replaced)
    machine.install("tensorrt")
    with pytest.raises(ArtifactError, match="changed while it was being loaded"):
        ExportedModel.open(engine)


def test_files_that_change_after_loading_change_nothing(machine, engine):
    machine.install("tensorrt")
    with ExportedModel.open(engine) as model:
        batch = np.full((1, 56, 56, 3), 99, np.uint8)
        before = model.run(batch)
        for file in (engine, sidecar_path(engine), engine.with_name("model.onnx")):
            file.write_bytes(b"")
        np.testing.assert_array_equal(model.run(batch).cams, before.cams)


def test_the_model_may_be_elsewhere(machine, engine):
    engine.with_name("model.onnx").unlink()
    machine.open(engine)


def package_of(name, version=VERSION):
    return TensorRTPackage(name, SimpleNamespace(ComputeCapability=ComputeCapability), version)


RTX = package_of("tensorrt_rtx")


@pytest.mark.parametrize(
    ("built", "gpu", "fits"),
    [
        (("8.6", "12.0"), (8, 6), True), (("8.6", "12.0"), (12, 0), True),
        (("8.6",), (8, 9), False), ((), (8, 0), True), ((), (12, 1), True), ((), (7, 5), False),
    ],
)  # fmt: skip
def test_gpus_that_an_rtx_engine_is_for(tmp_path, built, gpu, fits):
    engine = write_engine(tmp_path, "tensorrt_rtx", built)
    sidecar = read_sidecar(engine)
    here = replace(GPU, name="Any", capability=gpu)
    if fits:
        check_fit(engine, sidecar, RTX, here)
        return
    with pytest.raises(ArtifactError, match=f"--capability {gpu[0]}\\.{gpu[1]}"):
        check_fit(engine, sidecar, RTX, here)


@pytest.mark.parametrize("gpu", [(8, 7), (9, 0), (10, 0), (10, 3), (11, 0), (7, 0), (13, 0)])
@pytest.mark.parametrize("built", [(), ("8.6",)])
def test_gpus_that_rtx_does_not_support_at_all(tmp_path, built, gpu):
    engine = write_engine(tmp_path, "tensorrt_rtx", built)
    with pytest.raises(ArtifactError) as caught:
        check_fit(engine, read_sidecar(engine), RTX, replace(GPU, capability=gpu))
    text = str(caught.value)
    assert f"7.5, 8.0, 8.6, 8.9, 12.0, 12.1, not {gpu[0]}.{gpu[1]}" in text
    assert 'pip install "sigcam[tensorrt]"' in text
    assert "`sigcam build-engine model.onnx --package tensorrt`" in text
    assert "--capability" not in text  # which would lead nowhere


def test_the_list_is_the_packages_own(tmp_path):
    class Newer(Enum):
        NONE, SM90, SM103 = range(3)

    engine = write_engine(tmp_path, "tensorrt_rtx", ())
    newer = TensorRTPackage("tensorrt_rtx", SimpleNamespace(ComputeCapability=Newer), VERSION)
    for gpu in ((9, 0), (10, 3)):
        check_fit(engine, read_sidecar(engine), newer, replace(GPU, capability=gpu))
    with pytest.raises(ArtifactError, match=r"capabilities 9\.0, 10\.3, not 8\.6"):
        check_fit(engine, read_sidecar(engine), newer, GPU)


def test_another_gpu_of_this_machine_is_named_in_the_command(tmp_path):
    engine = write_engine(tmp_path)
    other = replace(GPU, ordinal=2, capability=(9, 0))
    with pytest.raises(ArtifactError, match=r"--package tensorrt .*--device 2` here"):
        check_fit(engine, read_sidecar(engine), package_of("tensorrt"), other)


@pytest.mark.parametrize(
    ("built", "here", "runs"),
    [
        ("10.13.3.9", "10.13.3.9", True), ("10.13.3.9", "10.16.1.11", True),
        ("10.13.3.9", "10.13.3.9.post1", True), ("10.13.3.9", "10.13.2.6", False),
        ("10.13.3.9", "11.4.0.106", False), ("10.13.3.9", "9.3.0", False),
    ],
)  # fmt: skip
def test_versions_that_run_a_compatible_engine(engine, built, here, runs):
    sidecar = replace(read_sidecar(engine), version=built, version_compatible=True)
    package = package_of("tensorrt", here)
    if runs:
        check_fit(engine, sidecar, package, GPU)
    else:
        with pytest.raises(ArtifactError, match=rf"install tensorrt=={built} or build it again"):
            check_fit(engine, sidecar, package, GPU)
    if here != built:  # without that flag only the very same
        with pytest.raises(ArtifactError, match="runs with no other version"):
            check_fit(engine, replace(sidecar, version_compatible=False), package, GPU)


@pytest.mark.parametrize(
    ("hardware", "capability", "name", "fits"),
    [
        ("gpu", (8, 6), "Another", False), ("capability", (8, 6), "Another", True),
        ("capability", (8, 9), "Another", False), ("ampere", (8, 9), "Another", True),
        ("ampere", (9, 0), "Another", True), ("ampere", (7, 5), "Another", False),
        ("ampere", (8, 6), "Fake GPU", True),
    ],
)  # fmt: skip
def test_gpus_that_an_engine_for_more_of_them_runs_on(engine, hardware, capability, name, fits):
    sidecar = replace(read_sidecar(engine), hardware=hardware)
    gpu = replace(GPU, name=name, capability=capability)
    if fits:
        check_fit(engine, sidecar, package_of("tensorrt"), gpu)
        return
    with pytest.raises(ArtifactError, match="build-engine") as caught:
        check_fit(engine, sidecar, package_of("tensorrt"), gpu)
    if hardware != "gpu":
        assert f"--hardware {hardware}" in str(caught.value)


def test_another_version_is_asked_for_by_what_pip_calls_it(tmp_path):
    engine = write_engine(tmp_path, "tensorrt_rtx")
    with pytest.raises(ArtifactError, match=rf"install tensorrt-rtx-cu13=={VERSION} or build"):
        check_fit(engine, read_sidecar(engine), package_of("tensorrt_rtx", "1.0"), GPU)


def test_files_that_cannot_be_read(engine, monkeypatch):
    found = read_sidecar(engine)

    def broken(self, *arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(ArtifactError, match=r"cannot read .*model\.engine: Input/output error"):
        engine_bytes(engine, found)
    monkeypatch.setattr(Path, "open", broken)
    with pytest.raises(ArtifactError, match=r"cannot read .*model\.onnx: Input/output error"):
        check_source(engine, found)
    engine.unlink()
    with pytest.raises(ArtifactError, match=r"cannot read .*model\.engine: No such file"):
        engine_bytes(engine, found)
