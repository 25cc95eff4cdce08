"""The folder of a repository appears whole or not at all, and takes no other one's place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sigcam.core.errors import StorageError, UsageError
from sigcam.repositories.folder import MARK, new_folder, write_json
from sigcam.repositories.options import RepositoryOptions, named_models
from sigcam.repositories.write import WRITERS, export_repository


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    return {
        str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()
    }


def test_it_appears_at_the_end(tmp_path) -> None:
    target = tmp_path / "deep" / "repository"
    with new_folder(target, replace=False) as folder:
        (folder / "a.txt").write_text("1")
        assert not target.exists()
    assert contents(tmp_path) == {"deep/repository/a.txt": b"1"}
    assert target.stat().st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [KeyboardInterrupt, UsageError, OSError(28, "No space left")])
@pytest.mark.parametrize("before", [None, "empty", "ours"])
def test_nothing_is_left_of_one_that_failed(tmp_path, error, before) -> None:
    target = tmp_path / "repository"
    if before is not None:
        target.mkdir()
    if before == "ours":
        write_json(target / MARK, {})
    kept = contents(tmp_path)
    wanted = StorageError if isinstance(error, OSError) else error
    with (
        pytest.raises(wanted),
        new_folder(target, replace=True) as folder,
    ):
        (folder / "a.txt").write_text("1")
        raise error
    assert contents(tmp_path) == kept
    assert [one.name for one in tmp_path.iterdir()] == (["repository"] if before else [])


def test_other_contents_are_never_replaced(tmp_path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.txt").write_text("years")
    for replace in (False, True):
        with (
            pytest.raises(UsageError, match="isn't empty and no repository"),
            new_folder(target, replace=replace),
        ):
            pass
    assert contents(target) == {"thesis.txt": b"years"}


def test_a_repository_is_replaced_where_that_is_asked_for(tmp_path) -> None:
    target = tmp_path / "repository"
    for number in range(2):
        with new_folder(target, replace=number > 0) as folder:
            write_json(folder / MARK, {"number": number})
            (folder / f"{number}.txt").touch()
    assert set(contents(tmp_path)) == {f"repository/{MARK}", "repository/1.txt"}
    with pytest.raises(UsageError, match="--replace"), new_folder(target, replace=False):
        pass


def test_what_came_to_the_place_meanwhile_stays(tmp_path) -> None:
    target = tmp_path / "repository"
    with pytest.raises(UsageError, match="isn't empty"), new_folder(target, replace=True):
        target.mkdir()
        (target / "theirs.txt").touch()
    assert set(contents(tmp_path)) == {"repository/theirs.txt"}


@pytest.mark.parametrize("kind", ["file", "link", "device"])
def test_no_folder(tmp_path, kind) -> None:
    target = tmp_path / "there"
    if kind == "file":
        target.touch()
    elif kind == "link":
        (tmp_path / "real").mkdir()
        target.symlink_to(tmp_path / "real")
    else:
        target = Path("/dev/null")
    with pytest.raises(UsageError, match="is no folder"), new_folder(target, replace=True):
        pass


def test_a_model_in_the_folder_that_would_be_replaced(tmp_path, make_artifact) -> None:
    target = tmp_path / "repository"
    export_repository([f"net={make_artifact()}"], target, "triton")
    kept = contents(target)
    inside = target / "net" / "1" / "model.onnx"
    with pytest.raises(UsageError, match="lies in"):
        export_repository([f"net={inside}"], target, "triton", replace=True)
    assert contents(target) == kept


@pytest.mark.parametrize("server", sorted(WRITERS))
def test_every_server_says_what_wrote_it(tmp_path, make_artifact, server) -> None:
    target = tmp_path / "repository"
    assert export_repository([make_artifact()], target, server) == target
    mark = json.loads((target / MARK).read_text())
    assert mark["server"] == server
    assert set(mark["models"]) == {"model"}
    # No link leads out of it: it can be copied elsewhere.
    assert not [one for one in target.rglob("*") if one.is_symlink()]


@pytest.mark.parametrize("server", sorted(WRITERS))
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "head"])
def test_a_model_that_is_not_what_was_written(tmp_path, make_artifact, server, damage) -> None:
    path = make_artifact(head_input="features")
    if damage == "flipped":
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "missing":
        path = path.with_name("none.onnx")
    else:
        path = path.with_name("model.head.onnx")
    with pytest.raises((UsageError, Exception)) as raised:
        export_repository([f"net={path}"], tmp_path / "repository", server)
    assert type(raised.value).__module__ == "sigcam.core.errors", raised.value
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("models", "wanted"),
    [
        (["a/cat.onnx", "dog=b/x.onnx"], ["cat", "dog"]),
        (["m.rtx.engine", "n.engine"], ["m", "n"]),
        (["a=b=c.onnx"], ["a"]),
    ],
)
def test_names(models, wanted) -> None:
    assert [one.name for one in named_models(models)] == wanted


@pytest.mark.parametrize(
    "models",
    [
        [], ["../.onnx"], ["a b.onnx"], ["..=x.onnx"], ["a/../x=m.onnx"], ["=m.onnx"],
        ["a.onnx", "b/a.onnx"], ["a.onnx", "a=b.onnx"], ["é.onnx"], ["x" * 101 + ".onnx"],
        ["-o.onnx"],
    ],
)  # fmt: skip
def test_names_that_no_server_can_have(models) -> None:
    with pytest.raises(UsageError):
        named_models(models)


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 0}, {"batch_delay": -1}, {"queue_requests": 0}, {"instances": 0},
     {"image": ""}, {"image": "a b"}, {"image": 3}, {"batch_size": "8"}],
)  # fmt: skip
def test_options_out_of_range(change) -> None:
    with pytest.raises(UsageError):
        RepositoryOptions(**change)
