"""`sigcam explain` on folders, globs, lists and `-`: what is taken, and where maps go."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from sigcam.cli import main
from sigcam.core.errors import StorageError
from sigcam.runtime.explanation import Explanation


@pytest.fixture
def explain(cli, tiny_model):
    return lambda *arguments: cli("explain", tiny_model, *arguments)


def records(found):
    return [json.loads(line) for line in found.stdout.splitlines()]


def taken(found):
    return [record["image"] for record in records(found) if "image" in record]


def tree(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("place", ["images/maps", "images/sub/maps", "images/../images/new/maps"])
@pytest.mark.parametrize("argument", ["images", "images/**/*.png", "images/**", "images/*"])
def test_maps_in_a_folder_of_images_are_no_images_the_next_time(
    explain, photographs_in, tmp_path, monkeypatch, place, argument
):
    monkeypatch.chdir(photographs_in(tmp_path, "images/a.png", "images/b.png", "images/sub/a.png"))
    before = {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)}
    runs = [explain(argument, "--json", "--out", place) for _ in range(3)]
    assert [one.exit_code for one in runs] == [0, 0, 0], runs[0].stderr
    assert [taken(one) for one in runs] == [taken(runs[0])] * 3
    assert len(taken(runs[0])) == 3
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert "the folder that is written to" in runs[1].stderr


def test_the_folder_of_the_images_itself_is_refused(explain, photographs_in, tmp_path):
    folder = photographs_in(tmp_path / "images", "a.png", "b.png")
    (tmp_path / "link").symlink_to(folder)
    for out in (folder, tmp_path / "link", f"{folder}/../images/"):
        found = explain(folder, "--out", out)
        assert found.exit_code == 2
        assert "is the folder that is written to; name another one" in found.stderr
    assert tree(folder) == ["a.png", "b.png"]
    above = photographs_in(tmp_path / "up", "down/down/a.png")
    found = explain(above / "down", "--out", above)
    assert found.exit_code == 2
    assert "would lie among the images" in found.stderr


def test_an_image_is_not_written_over_by_its_own_map_or_that_of_another(
    explain, photographs_in, tmp_path
):
    folder = photographs_in(tmp_path, "a.png", "b.jpg")
    before = {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)}
    for image, suffix in (("a.png", "png"), ("b.jpg", "jpg")):
        found = explain(folder / image, "--out", folder, "--format", suffix)
        assert found.exit_code == 2
        assert "is an input and can't be written over" in found.stderr
    assert {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)} == before
    assert explain(folder / "b.jpg", "--out", folder).exit_code == 0
    assert tree(folder) == ["a.png", "b.jpg", "b.png"]
    # b.png is no input here, and a map of a run before: it may be replaced.
    assert explain(folder / "b.jpg", "--out", folder).exit_code == 0


def test_a_class_in_the_name_may_hit_an_image_too(explain, photographs_in, tmp_path):
    folder = photographs_in(tmp_path, "a.png", "a-1.png")
    before = (folder / "a-1.png").read_bytes()
    names = ("--class", "red", "--class", "green")
    found = explain(folder / "a.png", folder / "a-1.png", *names, "--out", folder, "--json")
    assert found.exit_code == 1
    assert (folder / "a-1.png").read_bytes() == before
    first, second = records(found)
    assert [one["written"] for one in first["explanations"]] == [str(folder / "a-0.png"), None]
    assert "a-1.png is an input" in first["error"]
    assert "error" not in second
    assert tree(folder) == ["a-0.png", "a-1-0.png", "a-1-1.png", "a-1.png", "a.png"]


@pytest.mark.parametrize(
    "name", ["map.png", "map.JPG", "map.jpeg", "map.webp", "map.npz", "m.json"]
)
def test_a_file_for_one_map(explain, photographs_in, tmp_path, name):
    folder = photographs_in(tmp_path / "images", "a.png", "b.png")
    out = tmp_path / "new" / name
    found = explain(folder / "a.png", "--json", "--out", out)
    assert found.exit_code == 0, found.stderr
    assert records(found)[0]["explanations"][0]["written"] == str(out)
    assert tree(tmp_path / "new") == [name]
    for arguments, says in (
        ([folder], "one file, and there are several images"),
        ([folder / "a.png", folder / "b.png"], "one file, and there are several images"),
        ([folder / "a.png", "--class", "red", "--class", "blue"], "several maps of the image"),
        ([folder / "a.png", "--min-probability", "0"], "several maps of the image"),
    ):
        refused = explain(*arguments, "--out", out)
        assert refused.exit_code == 2
        assert says in refused.stderr
    assert tree(tmp_path / "new") == [name]


def test_files_that_are_not_written(explain, photographs_in, tmp_path):
    image = photographs_in(tmp_path, "a.png") / "a.png"
    for out, more, says in (
        ("map.tiff", (), "maps aren't written as .tiff"),
        ("map.gif", (), "maps aren't written as .gif"),
        ("map.png", ("--format", "npz"), "is no npz"),
    ):
        found = explain(image, "--out", tmp_path / out, *more)
        assert found.exit_code == 2
        assert says in found.stderr
    (tmp_path / "folder.png").mkdir()  # a folder with such a name is a folder
    assert explain(image, "--out", tmp_path / "folder.png").exit_code == 0
    assert tree(tmp_path) == ["a.png", "folder.png/a.png"]


def test_maps_of_the_same_name_lie_beside_each_other(explain, photographs_in, tmp_path):
    names = ("a/x.jpg", "b/x.jpg", "x.png", "x.jpg", "X.jpg", "x-2.jpg")
    folder = photographs_in(tmp_path / "images", *names)
    found = explain(*(folder / name for name in names), "--json", "--out", tmp_path / "maps")
    assert found.exit_code == 0, found.stderr
    written = [one["explanations"][0]["written"] for one in records(found)]
    assert len({name.casefold() for name in written}) == len(names)
    assert sorted(written) == [str(tmp_path / "maps" / name) for name in tree(tmp_path / "maps")]
    # Each is that of its image, and no other's.
    for image, file in zip(names, written, strict=True):
        alone = tmp_path / "alone" / image
        assert explain(folder / image, "--out", alone.with_suffix(".png")).exit_code == 0
        assert alone.with_suffix(".png").read_bytes() == (tmp_path / file).read_bytes()


def test_what_is_left_out_is_said(explain, photographs_in, tmp_path):
    folder = photographs_in(
        tmp_path / "phone", "a.jpg", "B.JFIF", "c.jpe", "._a.jpg", "@eaDir/a.jpg", "clip.mov",
        "d.jxl", "notes.txt", ".DS_Store",
    )  # fmt: skip
    found = explain(folder, "--json")
    assert found.exit_code == 0
    assert [Path(name).name for name in taken(found)] == ["B.JFIF", "a.jpg", "c.jpe"]
    left = {Path(r["file"]).name: r["left_out"] for r in records(found) if "file" in r}
    assert left.keys() == {"._a.jpg", "@eaDir", "clip.mov", "d.jxl", "notes.txt"}
    for name, reason in left.items():
        assert name in found.stderr
        assert reason in found.stderr
    plain = explain(folder)
    assert len(plain.stdout.splitlines()) == 3
    shutil.rmtree(folder)
    empty = explain(photographs_in(tmp_path / "phone", "d.jxl"), "--json")
    assert empty.exit_code == 2
    assert "d.jxl" in empty.stderr
    assert records(empty)[0]["file"].endswith("d.jxl")


def test_linked_folders_are_taken_and_loops_end(explain, photographs_in, tmp_path):
    folder = photographs_in(tmp_path / "images", "a.png")
    (folder / "cats").symlink_to(photographs_in(tmp_path / "cats", "c.png"))
    (folder / "round").symlink_to("..")
    found = explain(folder, "--json", "--out", tmp_path / "maps")
    assert found.exit_code == 0, found.stderr
    assert [Path(name).name for name in taken(found)] == ["a.png", "c.png"]
    assert tree(tmp_path / "maps") == ["a.png", "cats/c.png"]


@pytest.mark.parametrize(
    "name", ["a", "a.JPG", "a.jpeg", "PHOTO.PNG", "a.txt", "b[1].png", "-x.png"]
)
def test_a_single_file_is_read_whatever_its_name(
    explain, photographs_in, tmp_path, name, monkeypatch
):
    monkeypatch.chdir(photographs_in(tmp_path, name))
    found = explain("--json", "--", name)
    assert found.exit_code == 0, found.stderr
    assert taken(found) == [name]


def test_globs(explain, photographs_in, tmp_path, monkeypatch):
    names = ("shots [2024]/a.jpg", "shots [2024]/b.png", "shots 2/c.jpg", "shots [2024]/n.txt")
    monkeypatch.chdir(photographs_in(tmp_path, *names))
    assert taken(explain("shots [2024]/*.jpg", "--json")) == ["shots [2024]/a.jpg"]
    assert taken(explain("shots [2024]", "--json")) == list(names[:2])
    both = explain("shots*", "--json")  # as a shell would give the folders
    assert taken(both) == ["shots 2/c.jpg", "shots [2024]/a.jpg", "shots [2024]/b.png"]
    some = explain("shots [2024]/*", "--json")
    assert taken(some) == list(names[:2])
    assert "n.txt" in some.stderr
    none = explain("shots [2024]/*.bmp")
    assert none.exit_code == 2
    assert "shots [2024]/*.bmp: no images" in none.stderr


def test_standard_input(tiny_model, photographs_in, tmp_path, monkeypatch):
    monkeypatch.chdir(photographs_in(tmp_path, "a.png", "-"))

    def run(data, *arguments):
        return CliRunner().invoke(main, ["explain", str(tiny_model), *arguments], input=data)

    data = (tmp_path / "a.png").read_bytes()
    found = run(data, "-", "a.png", "--json", "--out", "maps")
    assert found.exit_code == 0, found.stderr
    first, second = (record["explanations"][0] for record in records(found))
    assert taken(found) == ["-", "a.png"]
    assert first["probability"] == second["probability"]
    assert tree(tmp_path / "maps") == ["a.png", "stdin.png"]
    np.testing.assert_array_equal(cv2.imread("maps/a.png"), cv2.imread("maps/stdin.png"))
    assert run(data, "-", "--out", "one.jpg").exit_code == 0
    assert (tmp_path / "one.jpg").is_file()
    bad = run(b"", "-", "--json")
    assert bad.exit_code == 1
    assert "empty" in records(bad)[0]["error"]
    assert run(data, "-", "-").exit_code == 2
    assert run(data, "-", "--files-from", "-").exit_code == 2
    assert run(b"", "./-", "--json").exit_code == 0  # the file that is called so


@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
def test_lists_of_files(tiny_model, photographs_in, tmp_path, monkeypatch, end):
    names = ["a.png", "b c.png", "sub/d.png", "e*.png"]
    monkeypatch.chdir(photographs_in(tmp_path, *names))
    text = end.join(["a.png", "b c.png", "sub", "e*.png", ""])
    for file in ("-", "list.txt"):
        (tmp_path / "list.txt").write_text(text, newline="")
        command = ["explain", str(tiny_model), "--files-from", file, "--json"]
        found = CliRunner().invoke(main, command, input=text.encode())
        assert found.exit_code == 0, found.stderr
        assert taken(found) == names
    video = CliRunner().invoke(main, [*command, "clip.mp4"], input="a.png")
    assert video.exit_code == 2
    assert "a video is explained alone" in video.stderr
    empty = CliRunner().invoke(main, ["explain", str(tiny_model), "--files-from", "-"], input="\n")
    assert empty.exit_code == 2
    assert "no names of images" in empty.stderr


def test_a_record_for_each_image_that_failed(explain, photographs_in, tmp_path):
    folder = photographs_in(tmp_path, "good.png", "bad.png", "last.png")
    (folder / "bad.png").write_bytes(b"no image")
    arguments = [folder / name for name in ("good.png", "bad.png", "absent.png", "last.png")]
    found = explain(*arguments, "--json")
    assert found.exit_code == 1
    assert taken(found) == [str(path) for path in arguments]
    errors = [record.get("error") for record in records(found)]
    assert [error is None for error in errors] == [True, False, False, True]
    assert "bad.png is not an image" in errors[1]
    assert f"error: {errors[2]}" in found.stderr
    assert "2 of 4 images" in found.stderr


def test_a_file_that_cannot_be_written_fails_alone(explain, photographs_in, tmp_path, monkeypatch):
    folder = photographs_in(tmp_path / "images", "a.png", "b.png", "c.png")
    save = Explanation.save

    def full(self, path, options):
        if path.name == "b.png":
            raise StorageError(f"cannot write {path}: No space left on device; make room")
        save(self, path, options)

    monkeypatch.setattr(Explanation, "save", full)
    found = explain(folder, "--json", "--out", tmp_path / "maps")
    assert found.exit_code == 1
    assert tree(tmp_path / "maps") == ["a.png", "c.png"]
    written = [one["explanations"][0]["written"] for one in records(found)]
    assert [file is None for file in written] == [False, True, False]
    assert "No space left" in records(found)[1]["error"]
    assert "1 of 3 images" in found.stderr


def test_long_names_and_names_that_are_no_text(explain, photographs_in, tmp_path):
    names = ["n" * 251 + ".png", "\u65e5" * 83 + ".jpg", "\u65e5" * 82 + "x.jpg"]
    folder = photographs_in(tmp_path / "images", *names, os.fsdecode(b"caf\xe9.jpg"))
    (folder / "clash").mkdir()
    (tmp_path / "maps" / "caf\udce9.json").mkdir(parents=True)  # this one fails, alone
    classes = ("--class", "red", "--class", "green")
    good = explain(folder, *classes, "--json", "--out", tmp_path / "both")
    assert good.exit_code == 0, good.stderr
    assert len(tree(tmp_path / "both")) == 8
    found = explain(folder, "--json", "--format", "json", "--out", tmp_path / "maps")
    assert found.exit_code == 1
    assert "1 of 4 images" in found.stderr
    assert len(tree(tmp_path / "maps")) == 3
    failed = [record for record in records(found) if "error" in record]
    assert [record["image"] for record in failed] == [str(folder / "caf\udce9.jpg")]
    one = json.loads((tmp_path / "maps" / tree(tmp_path / "maps")[0]).read_text())
    assert one["source"].startswith(str(folder))
