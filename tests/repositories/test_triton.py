"""What is written for Triton, read by Triton's own messages and compared with the model."""

from __future__ import annotations

import hashlib
import json

import pytest

from sigcam.core.artifact import read_spec
from sigcam.core.errors import ArtifactError, UsageError
from sigcam.core.sidecar import read_sidecar
from sigcam.core.spec import ClassSelection
from sigcam.repositories.options import RepositoryOptions
from sigcam.repositories.pbtxt import Enum, to_pbtxt
from sigcam.repositories.write import export_repository
from sigcam.runtime.model import ExportedModel
from tests.support.fake_tensorrt import write_engine
from tests.support.tiny import NAMES, with_data_file

messages = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed"
)
text_format = pytest.importorskip("google.protobuf.text_format")

TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "int64": "TYPE_INT64"}
KINDS = {
    "classes by the caller": {},
    "the predicted class": {"classes": ClassSelection("top1")},
    "three classes": {"classes": ClassSelection("topk", 3)},
    "features and weights": {"profile": "split"},
    "further outputs": {"emit": ("features", "sigmoid_logits")},
}


def config_of(folder):
    """The configuration of a model in a repository."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), messages.ModelConfig())


def tensors(entries):
    return {one.name: (messages.DataType.Name(one.data_type), list(one.dims)) for one in entries}


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_are_those_of_the_graph(tmp_path, make_artifact, kind) -> None:
    path = make_artifact(**KINDS[kind])
    folder = export_repository([f"net={path}"], tmp_path / "out", "triton")
    config = config_of(folder / "net")
    with ExportedModel.open(path, "ort") as model:
        for entries, infos in (
            (config.input, model.backend.inputs),
            (config.output, model.backend.outputs),
        ):
            assert tensors(entries) == {
                one.name: (TYPES[str(one.dtype)], [-1 if s is None else s for s in one.shape[1:]])
                for one in infos
            }
    assert (config.name, config.backend, config.max_batch_size) == ("net", "onnxruntime", 8)
    assert (folder / "net" / "1" / "model.onnx").read_bytes() == path.read_bytes()


def test_batches_queue_and_warmup(tmp_path, make_artifact) -> None:
    options = RepositoryOptions(batch_size=5, batch_delay=300, queue_requests=7, instances=2)
    folder = export_repository([make_artifact()], tmp_path / "out", "triton", options)
    for name in ("model", "model-explain"):
        config = config_of(folder / name)
        assert config.max_batch_size == 5
        batching = config.dynamic_batching
        assert batching.max_queue_delay_microseconds == 300
        assert batching.default_queue_policy.max_queue_size == 7
        assert config.instance_group[0].count == 2
    config = config_of(folder / "model")
    assert [one.batch_size for one in config.model_warmup] == [1, 5]
    for one in config.model_warmup:
        assert set(one.inputs) == {"image", "class_ids"}
        assert list(one.inputs["image"].dims) == [56, 56, 3]
        assert list(one.inputs["class_ids"].dims) == [1]


def test_names_of_classes(tmp_path, make_artifact) -> None:
    names = ("red\nfox", "green", "blue", "é")
    folder = export_repository([make_artifact(class_names=names)], tmp_path / "out", "triton")
    logits = next(one for one in config_of(folder / "model").output if one.name == "logits")
    lines = (folder / "model" / logits.label_filename).read_text("utf-8").splitlines()
    assert lines == ["red fox", "green", "blue", "é"]
    folder = export_repository([make_artifact(class_names=())], tmp_path / "b", "triton")
    assert not any(one.label_filename for one in config_of(folder / "model").output)
    assert NAMES  # those of the first are others


def test_weights_beside_the_graph_and_a_head_graph(tmp_path, make_artifact) -> None:
    path = make_artifact(head_input="features", head="mlp")
    data = with_data_file(path)
    folder = export_repository([f"net={path}"], tmp_path / "out", "triton")
    own = {one.name for one in (folder / "net" / "1").iterdir()}
    assert own == {"model.onnx", data.name}
    explain = {one.name for one in (folder / "net-explain" / "1").iterdir()}
    assert explain == {"model.onnx", data.name, "model.head.onnx", "model.py"}
    assert read_spec(folder / "net-explain" / "1" / "model.onnx") == read_spec(path)


def test_several_models(tmp_path, make_artifact) -> None:
    folder = export_repository(
        [f"a={make_artifact()}", f"b={make_artifact(classes=ClassSelection('top1'))}"],
        tmp_path / "out",
        "triton",
    )
    assert {one.name for one in folder.iterdir() if one.is_dir()} == {
        "a", "a-explain", "b", "b-explain",
    }  # fmt: skip
    assert len(config_of(folder / "a").input) == 2
    assert len(config_of(folder / "b").input) == 1


def test_an_engine(tmp_path) -> None:
    engine = write_engine(tmp_path)
    folder = export_repository([engine], tmp_path / "out", "triton", RepositoryOptions(64))
    config = config_of(folder / "model")
    assert config.backend == "tensorrt"
    assert config.max_batch_size == read_sidecar(engine).shapes["image"][2][0]
    assert tensors(config.output)["logits"] == ("TYPE_FP32", [4])
    assert config.instance_group[0].kind == messages.ModelInstanceGroup.KIND_GPU
    # The backend's own name of the file; what is ours lies with the model that our runtime runs.
    assert {one.name for one in (folder / "model" / "1").iterdir()} == {"model.plan"}
    assert (folder / "model" / "1" / "model.plan").read_bytes() == engine.read_bytes()
    explain = folder / "model-explain" / "1"
    assert read_sidecar(explain / "model.engine") == read_sidecar(engine)


def test_engines_that_triton_cannot_run(tmp_path) -> None:
    other = write_engine(tmp_path, package="tensorrt_rtx")
    with pytest.raises(UsageError, match="--package tensorrt"):
        export_repository([other], tmp_path / "out", "triton")
    engine = write_engine(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx, which isn't beside it"):
        export_repository([engine], tmp_path / "out", "triton")
    sidecar = json.loads(engine.with_name("model.engine.json").read_text())
    assert hashlib.sha256(engine.read_bytes()).hexdigest() == sidecar["sha256"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", ['with "quotes"', "back\\slash", "line\nbreak", "é", "日本", "\x07", "a'b", ""]
)
def test_texts_come_back(text) -> None:
    written = to_pbtxt({"name": text, "max_batch_size": 3})
    assert text_format.Parse(written, messages.ModelConfig()).name == text


def test_forms_of_a_message() -> None:
    message = {
        "input": [{"name": "a", "dims": [1, -1], "data_type": Enum("TYPE_FP32")}],
        "output": [],
        "name": None,
        "dynamic_batching": {"preserve_ordering": True, "priority_levels": 2},
    }
    read = text_format.Parse(to_pbtxt(message), messages.ModelConfig())
    assert list(read.input[0].dims) == [1, -1]
    assert read.dynamic_batching.preserve_ordering is True
    assert (read.name, len(read.output)) == ("", 0)
