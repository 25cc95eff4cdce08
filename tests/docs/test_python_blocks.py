"""The Python blocks of README and docs run as they stand."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import sys

import cv2
import numpy as np
import pytest

from sigcam.core.spec import ClassSelection
from tests.support.paths import ROOT
from tests.support.sessions import make_artifact  # noqa: F401 (a fixture)

FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
NEED_A_GPU = {"kernels.md"}
"""Their blocks launch kernels; what they import must be there."""


def blocks(page):
    return FENCE.findall(page.read_text(encoding="utf-8"))


def console():
    """docs/console.py, which isn't in the package."""
    spec = importlib.util.spec_from_file_location("docs_console", ROOT / "docs" / "console.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    scope = {"__name__": "__main__"}
    for block in blocks(page):
        if "import tritonclient" in block:  # wants a server: tests/serve/test_clients.py
            continue
        exec(compile(block, str(page), "exec"), scope)  # (our own pages)


def test_every_page_with_python_is_tested():
    """Here, or beside the part that the page is about."""
    assert {page.name for page in PAGES if blocks(page)} == {
        "README.md", "api.md", "kernels.md", "overlays.md", "serving.md", "video.md",
        "evaluation.md",  # tests/evaluate/test_docs.py
        "quantization.md",  # tests/convert/quantize/test_docs.py
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(NEED_A_GPU))
def test_what_a_gpus_blocks_import_is_there(name):
    for block in blocks(ROOT / "docs" / name):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                exec(compile(ast.Module([node], []), name, "exec"), {})


def test_overlays(make_artifact, tmp_path, monkeypatch):  # noqa: F811 (the fixture)
    shutil.copy(make_artifact(), tmp_path / "model.onnx")
    for name in ("cat.jpg", "dog.jpg"):
        image = np.random.default_rng(len(name)).integers(0, 256, (90, 120, 3), np.uint8)
        cv2.imwrite(str(tmp_path / name), image)
    run(ROOT / "docs" / "overlays.md", tmp_path, monkeypatch)
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert made == {"cat.png", "cat-labelled.png", "map.png", "maps/0.png", "maps/1.png"}


def test_readme(make_artifact, tmp_path, monkeypatch):  # noqa: F811 (the fixture)
    pytest.importorskip("skimage")
    console().use_photographs(tmp_path)
    model = make_artifact(classes=ClassSelection("input"), head_input="features")
    for file in model.parent.iterdir():
        shutil.copy(file, tmp_path)
    run(ROOT / "README.md", tmp_path, monkeypatch)
    assert (tmp_path / "cat-heatmap.png").is_file()


def test_serving(make_artifact, tmp_path, monkeypatch):  # noqa: F811 (the fixture)
    pytest.importorskip("skimage")
    console().use_photographs(tmp_path)
    model = make_artifact(classes=ClassSelection("input"), head_input="features")
    for file in model.parent.iterdir():
        shutil.copy(file, tmp_path)
    run(ROOT / "docs" / "serving.md", tmp_path, monkeypatch)


def test_video(make_artifact, tmp_path, monkeypatch):  # noqa: F811 (the fixture)
    pytest.importorskip("skimage")
    console().use_photographs(tmp_path)
    make_artifact().rename(tmp_path / "model.onnx")
    run(ROOT / "docs" / "video.md", tmp_path, monkeypatch)
    assert (tmp_path / "overlay.mp4").is_file()


@pytest.mark.slow
def test_the_whole_path(tmp_path, monkeypatch):
    """docs/api.md trains, exports, explains, quantises, evaluates and builds an engine."""
    for package in ("skimage", "efficientnet_lite_pytorch", "tensorrt_rtx"):
        pytest.importorskip(package)
    console().use_photographs(tmp_path)
    run(ROOT / "docs" / "api.md", tmp_path, monkeypatch)
    for name in ("branch.safetensors", "model.onnx", "model.head.onnx", "cat-heatmap.png",
                 "model.int8.onnx", "model.rtx.engine", "model.rtx.engine.json"):  # fmt: skip
        assert (tmp_path / name).is_file(), name
