"""Models that come as paths or bytes, and files that change while and after they are loaded."""

import hashlib
import io
import os
import shutil

import numpy as np
import pytest

from sigcam.core.artifact import read_spec
from sigcam.core.errors import ArtifactError, UsageError
from sigcam.core.model_file import ModelFile
from sigcam.runtime.backends.base import Backend
from sigcam.runtime.session import load
from tests.support.tiny import WEIGHTS, with_data_file

IMAGE = np.random.default_rng(3).integers(0, 256, (56, 56, 3), np.uint8)
BACKENDS = {"ort": "onnxruntime", "openvino": "openvino"}


@pytest.fixture(params=BACKENDS)
def backend(request):
    pytest.importorskip(BACKENDS[request.param])
    return request.param


def same(got, wanted):
    assert (got.class_id, got.probability) == (wanted.class_id, wanted.probability)
    assert got.evidence == wanted.evidence
    np.testing.assert_array_equal(got.cam, wanted.cam)


def cases_of(path):
    data = path.read_bytes()
    return [data, bytearray(data), memoryview(data), io.BytesIO(data), path.open("rb")]


def test_a_model_from_memory(make_artifact, backend):
    path = make_artifact(head="mlp", head_input="features")
    head = path.with_name("model.head.onnx")
    with load(path, backend) as session:
        [wanted] = session.explain(IMAGE)
        [further] = wanted.for_classes(1)
    for source, beside in zip(cases_of(path), cases_of(head), strict=True):
        with load(source, backend, head=beside) as session:
            [got] = session.explain(IMAGE)
            same(got, wanted)
            same(got.for_classes(1)[0], further)
        for one in (source, beside):
            if not isinstance(one, (bytes, bytearray, memoryview)):
                assert not one.closed
                one.close()
    with load(path.read_bytes(), backend) as session:
        [got] = session.explain(IMAGE)
        with pytest.raises(UsageError, match="need the head graph"):
            got.for_classes(1)


def test_an_open_file_is_read_from_where_it_stands(make_artifact):
    data = make_artifact().read_bytes()
    stream = io.BytesIO(b"before" + data)
    stream.seek(6)
    with load(stream) as session:
        assert session.explain(IMAGE)


def test_what_memory_cannot_be(make_artifact):
    path = make_artifact(head="mlp")
    for wrong in (3, None, ["model.onnx"], np.zeros(3)):
        with pytest.raises(UsageError, match="must be a path, its bytes, or a file"):
            load(wrong)
    with path.open(encoding="latin-1") as text, pytest.raises(UsageError, match="mode 'rb'"):
        load(text)
    closed = path.open("rb")
    closed.close()
    with pytest.raises(ArtifactError, match="cannot read the model from the open file"):
        load(closed)
    with pytest.raises(ArtifactError, match="the model's bytes is empty"):
        load(b"")
    with pytest.raises(ArtifactError, match="the model's bytes is not what was written"):
        load(path.read_bytes().replace(b"tiny", b"tine"))
    with pytest.raises(UsageError, match=r"pass the path of the \.engine file"):
        load(path.read_bytes(), "tensorrt")
    with_data_file(path)
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data beside the graph; pass the path"):
        load(path.read_bytes())


def test_the_folder_may_change(make_artifact, backend, monkeypatch, tmp_path):
    path = make_artifact(head_input="features")
    monkeypatch.chdir(path.parent)
    with load("model.onnx", backend) as session:
        monkeypatch.chdir(tmp_path)
        [first] = session.explain(IMAGE)
        assert first.for_classes(1)[0].class_id == 1
    monkeypatch.chdir(path.parent)
    with load("model.onnx", backend, head="model.head.onnx") as session:
        monkeypatch.chdir(tmp_path)
        assert session.explain(IMAGE)[0].for_classes(1)


@pytest.mark.parametrize("how", ["rename", "unlink", "copy", "truncate"])
def test_a_head_graph_that_changes_before_it_is_used(make_artifact, backend, how):
    path = make_artifact(head="mlp", head_input="features")
    other = make_artifact(weights=WEIGHTS[::-1].copy(), head_input="features")
    head, donor = (one.with_name("model.head.onnx") for one in (path, other))
    with load(path, backend) as session:
        [wanted] = session.explain(IMAGE)[0].for_classes(1)
    with load(path, backend) as session:
        [first] = session.explain(IMAGE)
        if how == "rename":
            donor.replace(head)
        elif how == "unlink":
            head.unlink()
        elif how == "copy":
            shutil.copyfile(donor, head)  # into the same file
        else:
            os.truncate(head, 100)
        if how in ("rename", "unlink"):
            same(first.for_classes(1)[0], wanted)
        else:
            with pytest.raises(ArtifactError, match=r"was (overwritten|replaced) since.*load"):
                first.for_classes(1)
        assert session.explain(IMAGE)


def test_the_head_graph_of_another_export(make_artifact):
    """It differs in nothing that the specs say: the same shapes, the same stated weights."""
    path = make_artifact(head_input="features")
    other = make_artifact(weights=WEIGHTS[::-1].copy(), head_input="features")
    shutil.copy(other.with_name("model.head.onnx"), path.with_name("model.head.onnx"))
    for verify in (True, False):
        with pytest.raises(ArtifactError, match="of another artifact: it has the digest"):
            load(path, verify=verify)


@pytest.mark.parametrize("how", ["zeros", "truncate", "unlink"])
@pytest.mark.parametrize("cached", [False, True])
def test_files_that_change_after_loading_change_nothing(
    make_artifact, backend, how, cached, tmp_path
):
    path = make_artifact(head="mlp", head_input="features")
    data = [with_data_file(one) for one in (path.with_name("model.head.onnx"), path)]
    _bind(path)
    files = [path, path.with_name("model.head.onnx"), *data]
    options = {"cache": tmp_path} if cached and backend == "openvino" else {}
    for _ in range(2):  # the second one from the cache
        with load(path, backend, **options) as session:
            [wanted] = session.explain(IMAGE)
    session = load(path, backend, **options)
    for file in [*files, *tmp_path.glob("*.blob")]:
        if how == "zeros":
            with file.open("r+b") as stream:
                stream.write(bytes(file.stat().st_size))
        elif how == "truncate":
            os.truncate(file, 0)
        else:
            file.unlink()
    with session:
        [got] = session.explain(IMAGE)
        same(got, wanted)
        assert got.for_classes(1)[0].class_id == 1


def _bind(path):
    """Writes the present head graph's digest into an artifact."""
    import onnx

    from tests.support.tiny import seal_to

    model = onnx.load(path, load_external_data=False)
    seal_to(model, path, path.with_name("model.head.onnx"))


@pytest.mark.parametrize("which", ["model.onnx", "model.onnx.data"])
@pytest.mark.parametrize("how", ["written", "replaced"])
def test_files_that_change_while_loading(make_artifact, backend, which, how, monkeypatch):
    path = make_artifact(head="mlp")
    with_data_file(path)
    file = path.with_name(which)
    check = ModelFile.check_unchanged

    def changed(self):
        content = file.read_bytes()
        if how == "replaced":
            copy = file.with_name("copy")
            copy.write_bytes(content)
            copy.replace(file)
        else:
            file.write_bytes(content)
            os.utime(file)
        check(self)

    monkeypatch.setattr(ModelFile, "check_unchanged", changed)
    with pytest.raises(ArtifactError, match="changed while it was being loaded"):
        load(path, backend)


def test_a_missing_file_of_weights(make_artifact, backend):
    path = make_artifact(head="mlp")
    with_data_file(path).unlink()
    for verify in (True, False):
        with pytest.raises(ArtifactError, match=r"lie in .*model\.onnx\.data, which isn't there"):
            load(path, backend, verify=verify)


def test_weights_of_another_name(make_artifact, backend):
    """The graph says where its weights are, not its own file's name."""
    path = make_artifact(head="mlp")
    with load(path, backend) as session:
        [wanted] = session.explain(IMAGE)
    with_data_file(path)
    before = ModelFile(path).contents_sha256()
    renamed = path.rename(path.with_name("cat.onnx"))
    assert ModelFile(renamed).contents_sha256() == before
    with load(renamed, backend) as session:
        same(session.explain(IMAGE)[0], wanted)


@pytest.mark.parametrize("place", ["/etc/passwd", "../model.onnx.data"])
def test_weights_elsewhere_are_refused(make_artifact, place):
    import onnx

    path = make_artifact(head="mlp")
    with_data_file(path)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match="isn't beside it"):
        load(path, verify=False)


def test_every_backend_opens_by_the_one_way():
    """What `Backend.open` does for all of them, no backend does by itself."""
    from sigcam.runtime.backends import BACKENDS as ALL
    from sigcam.runtime.backends import backend_class

    for name in ALL:
        assert backend_class(name).open.__func__ is Backend.open.__func__


def test_a_path_with_a_tilde(make_artifact, monkeypatch):
    path = make_artifact()
    monkeypatch.setenv("HOME", str(path.parent))
    with load("~/model.onnx") as session:
        assert session.spec == read_spec(path)


def test_an_engine_is_one_file_whose_bytes_are_its_contents(tmp_path):
    """It is no graph, so no weights are looked for beside it; an evaluation keeps this hash."""
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"ftrt" + np.random.default_rng(0).bytes(500))
    wanted = hashlib.sha256(engine.read_bytes()).hexdigest()
    assert ModelFile(engine).contents_sha256() == wanted
    assert not ModelFile(engine).has_external_data
