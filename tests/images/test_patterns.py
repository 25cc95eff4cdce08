"""Shell patterns: what they find, and names that look like one."""

from __future__ import annotations

import pytest

from sigcam.images.patterns import matches

FILES = [
    "shots [2024]/a.jpg", "shots [2024]/b.png", "shots 2/c.jpg", "x*y.jpg", "xzy.jpg",
    "deep/er/d.jpg", "deep/e.jpg", ".hidden/f.jpg", "._g.jpg", "[1].jpg", "1.jpg",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in FILES:
        path = tmp_path / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "work" / "deep" / "round").symlink_to("..")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("shots [2024]/*.jpg", ["shots [2024]/a.jpg"]),  # the folder is there under this name
        ("shots [0-9]/*.jpg", ["shots 2/c.jpg"]),
        ("shots*/*", ["shots 2/c.jpg", "shots [2024]/a.jpg", "shots [2024]/b.png"]),
        ("x?y.jpg", ["x*y.jpg", "xzy.jpg"]),
        ("[1].jpg", ["[1].jpg"]),
        ("[0-9].jpg", ["1.jpg"]),
        ("*.jpg", ["1.jpg", "[1].jpg", "x*y.jpg", "xzy.jpg"]),
        (".*.jpg", ["._g.jpg"]),
        (".hidden/*.jpg", [".hidden/f.jpg"]),
        ("**/d.jpg", ["deep/er/d.jpg"]),
        ("none/*.jpg", []),
        ("deep/../x[z]y.jpg", ["deep/../xzy.jpg"]),
    ],
)
def test_matches(folder, pattern, expected, absolute):
    start = folder if absolute else type(folder)()
    assert matches(start / pattern) == [start / name for name in expected]


def test_any_folders_those_behind_links_once(folder):
    found = [path.as_posix() for path in matches(type(folder)("deep/**/*.jpg"))]
    assert found[:2] == ["deep/e.jpg", "deep/er/d.jpg"]
    assert "deep/round/1.jpg" in found
    assert not any(name.startswith("deep/round/deep/") for name in found)
