from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from sigcam.classifier import branch_file
from sigcam.classifier.branch_file import (
    SCHEMA_VERSION,
    BranchInfo,
    load_branch,
    read_branch_info,
    save_branch,
)
from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.digest import BRANCH_DIGEST_FIELD, BRANCH_DIGEST_KEY, ZEROS, find_digest, seal
from sigcam.core.errors import (
    BranchMismatchError,
    ModelError,
    SchemaError,
    StorageError,
    UsageError,
)
from sigcam.core.spec import Preprocessing


@pytest.fixture
def info(toy, preprocessing) -> BranchInfo:
    return BranchInfo(
        architecture="toy",
        branch_layer=toy.branch_layer,
        num_classes=4,
        preprocessing=preprocessing,
        trained_on="40 images, 3 views each",
        positive_weight=3.0,
        class_names=("a", "b", "c", "d"),
        settings={"optimizer": "adam"},
    )


@pytest.fixture
def file(toy, info, tmp_path):
    with torch.no_grad():
        for parameter in toy.sigmoid_head.parameters():
            parameter.add_(0.25)
    path = tmp_path / "toy.safetensors"
    save_branch(path, toy, info)
    return path


def rewrite(path, change, **tensors) -> None:
    """Writes the file again with changed metadata and tensors."""
    with safe_open(path, framework="pt") as opened:
        text = opened.metadata()[branch_file.METADATA_KEY]
    metadata = json.loads(text)
    change(metadata)
    texts = {branch_file.METADATA_KEY: json.dumps(metadata), BRANCH_DIGEST_KEY: ZEROS}
    data = save({**load_file(path), **tensors}, metadata=texts)
    path.write_bytes(seal(data, find_digest(data, BRANCH_DIGEST_FIELD)))


def assert_unchanged(dual, make_dual) -> None:
    want = make_dual().sigmoid_head.named_tensors()
    for name, value in dual.sigmoid_head.named_tensors().items():
        assert torch.equal(value, want[name])


def test_round_trip(file, toy, info, make_dual) -> None:
    other = make_dual()
    read = load_branch(file, other)
    for name, value in toy.sigmoid_head.named_tensors().items():
        assert torch.equal(other.sigmoid_head.named_tensors()[name], value)
    assert read == read_branch_info(file)
    assert (read.trained_on, read.preprocessing, read.class_names, read.settings) == (
        info.trained_on, info.preprocessing, info.class_names, info.settings,
    )  # fmt: skip
    assert read.backbone_sha256 == toy.weights_sha256()
    assert read.versions["torch"].startswith(torch.__version__.split("+")[0])
    assert set(load_file(file)) == {"sigmoid.fc.weight", "sigmoid.fc.bias"}
    with pytest.raises(UsageError, match="class_names"):
        BranchInfo("toy", "x", 3, info.preprocessing, "", class_names=("a",))


def test_float16_is_half_the_size(file, toy, info, make_dual, tmp_path) -> None:
    path = tmp_path / "half.safetensors"
    save_branch(path, toy, info, dtype="float16")
    other = make_dual()
    load_branch(path, other)
    for name, value in toy.sigmoid_head.named_tensors().items():
        loaded = other.sigmoid_head.named_tensors()[name]
        assert loaded.dtype == torch.float32
        torch.testing.assert_close(loaded, value, rtol=1e-3, atol=1e-4)
    assert {v.dtype for v in load_file(path).values()} == {torch.float16}
    with pytest.raises(UsageError, match="dtype"):
        save_branch(path, toy, info, dtype="int8")


def test_a_replaced_softmax_head_travels_along(toy, info, make_dual, tmp_path) -> None:
    path = tmp_path / "branch.safetensors"
    with torch.no_grad():
        for parameter in toy.softmax_head.parameters():
            parameter.add_(0.5)
    fields = {**info.__dict__, "replaced_classes": True}
    save_branch(path, toy, BranchInfo(**fields))
    other = make_dual()
    assert load_branch(path, other).replaced_classes
    for name, value in toy.softmax_head.named_tensors().items():
        assert torch.equal(other.softmax_head.named_tensors()[name], value)


def test_another_model_is_refused(file, make_dual, make_model) -> None:
    model = make_model()
    with torch.no_grad():
        model.conv1.weight[0] += 1
    dual = DualBranch(model, input_size=16)
    with pytest.raises(BranchMismatchError, match=r"trained for toy with 4 classes .* weights"):
        load_branch(file, dual)
    assert_unchanged(dual, make_dual)
    softmax = make_model()
    with torch.no_grad():
        softmax.fc.bias += 1
    with pytest.raises(BranchMismatchError, match="other weights"):
        load_branch(file, DualBranch(softmax, input_size=16))
    with pytest.raises(BranchMismatchError, match=r"this model .* has 5 classes"):
        load_branch(file, make_dual(num_classes=5))
    with pytest.raises(BranchMismatchError, match=r"needs .*hidden"):
        load_branch(file, make_dual(deep=True))
    with pytest.raises(BranchMismatchError, match="at 'conv1'"):
        load_branch(file, DualBranch(make_model(), "conv1", input_size=16))


def test_another_shape_is_refused(file, toy) -> None:
    rewrite(file, lambda m: None, **{"sigmoid.fc.bias": torch.zeros(5)})
    with pytest.raises(BranchMismatchError, match=r"sigmoid\.fc\.bias is \[5\]"):
        load_branch(file, toy)


def test_values_that_are_not_finite(file, toy, info, make_dual, tmp_path) -> None:
    weight = load_file(file)["sigmoid.fc.weight"]
    weight[0, 0] = float("nan")
    rewrite(file, lambda m: None, **{"sigmoid.fc.weight": weight})
    dual = make_dual()
    with pytest.raises(ModelError, match="not finite"):
        load_branch(file, dual)
    assert_unchanged(dual, make_dual)
    with torch.no_grad():
        next(toy.sigmoid_head.parameters()).fill_(1e6)
    path = tmp_path / "new.safetensors"
    with pytest.raises(ModelError, match="not finite as float16"):
        save_branch(path, toy, info, dtype="float16")
    assert not path.exists()


@pytest.mark.parametrize("cut", [0, 5, 100, -10])
def test_damaged_files(file, toy, cut) -> None:
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ModelError, match="damaged or no safetensors"):
        load_branch(file, toy)


def test_other_files(tmp_path, toy) -> None:
    with pytest.raises(ModelError, match="there is no branch file"):
        read_branch_info(tmp_path / "none.safetensors")
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="but no branch file"):
        load_branch(path, toy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(schema_version=4), "version 4, this sigcam reads 3; upgrade sigcam"),
        (lambda m: m.update(schema_version=1), "version 1, this sigcam reads 3; train the branch"),
        (lambda m: m.pop("schema_version"), "'schema_version'"),
        (lambda m: m.pop("branch_layer"), "missing or wrong field"),
        (lambda m: m.update(num_classes="4"), "missing or wrong field"),
        (lambda m: m["preprocessing"].update(height=-1), "missing or wrong field"),
        (lambda m: m.update(preprocessing=None), "missing or wrong field"),
        (lambda m: m.update(positive_weight="x"), "missing or wrong field"),
    ],
)
def test_schema_errors(file, change, words) -> None:
    rewrite(file, change)
    with pytest.raises(SchemaError, match=words):
        read_branch_info(file)


def test_unknown_keys_of_this_version_are_ignored(file) -> None:
    before = read_branch_info(file)
    rewrite(file, lambda m: m.update(later="x"))
    assert read_branch_info(file) == before


def test_writing_fails_whole(toy, info, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        save_branch(tmp_path / "file" / "b.safetensors", toy, info)

    def full(self, data):
        with self.open("wb") as stream:
            stream.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left"):
        save_branch(tmp_path / "b.safetensors", toy, info)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]
    with pytest.raises(UsageError, match="info is of"):
        save_branch(
            tmp_path / "b.safetensors", toy, BranchInfo("t", "x", 4, info.preprocessing, "")
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_classes", 10**400), ("num_classes", True), ("class_names", [1, 2, 3, 4]),
        ("settings", []), ("positive_weight", "1"), ("loaded_classes", 2.5), ("task", []),
        ("replaced_classes", "no"), ("versions", {"torch": 2}), ("trained_on", None),
        ("settings", "DEEP"),
    ],
)  # fmt: skip
def test_fields_of_the_wrong_type(field, value):
    data = {"schema_version": SCHEMA_VERSION, **asdict(_WHOLE), field: value}
    text = json.dumps(data).replace('"DEEP"', '{"a":' * 10_000 + "1" + "}" * 10_000)
    with pytest.raises(SchemaError, match="train it again"):
        branch_file._info(text, Path("branch.safetensors"))


_WHOLE = BranchInfo("toy", "conv", 4, Preprocessing(16, 16), "toys", class_names=tuple("abcd"))
