"""The structure of docs/design.md holds: imports go downwards, and no files import in a circle."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# Part to the parts that it may import; the same table stands in docs/design.md.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "core": frozenset(),
    "images": frozenset({"core"}),
    "kernels": frozenset({"core"}),
    "hub": frozenset({"core"}),
    "runtime": frozenset({"core", "images", "kernels", "hub"}),
    "serve": frozenset({"core", "images", "runtime"}),
    "repositories": frozenset({"core", "hub", "runtime", "serve"}),
    "classifier": frozenset({"core", "hub"}),
    "data": frozenset({"core", "images"}),
    "train": frozenset({"core", "images", "classifier", "data", "export"}),
    "export": frozenset({"core", "classifier"}),
    "convert": frozenset({"core", "images", "kernels", "data", "runtime"}),
    "evaluate": frozenset({"core", "images", "data", "runtime", "classifier", "export"}),
    "demo": frozenset(
        {"core", "images", "kernels", "runtime", "classifier", "data", "train", "export",
         "convert", "evaluate"}
    ),
    "api": frozenset(
        {"core", "images", "kernels", "hub", "runtime", "serve", "repositories",
         "classifier", "data", "train",
         "export", "convert", "evaluate", "demo"}
    ),
}  # fmt: skip

# Third-party packages that a part must do without, so that it installs where they are missing.
MUST_NOT_IMPORT: dict[str, frozenset[str]] = {
    "core": frozenset({"torch", "torchvision", "onnx", "onnxruntime", "openvino", "cv2"}),
    "images": frozenset({"torch", "torchvision", "onnx", "onnxruntime", "openvino"}),
    "kernels": frozenset({"torch", "torchvision", "onnx", "onnxruntime", "cv2"}),
    "hub": frozenset({"torch", "torchvision", "onnx", "onnxruntime", "openvino", "cv2"}),
    "runtime": frozenset({"torch", "torchvision", "onnx", "huggingface_hub"}),
    "serve": frozenset({"torch", "torchvision", "onnx", "onnxruntime", "openvino"}),
    "repositories": frozenset({"torch", "torchvision", "onnxruntime", "openvino"}),
    "data": frozenset({"torch", "torchvision", "onnx", "onnxruntime"}),
    "convert": frozenset({"torch", "torchvision"}),
    "evaluate": frozenset({"torch", "torchvision", "onnx", "onnxruntime"}),
}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its name."""
    found = {}
    for part in MAY_IMPORT:
        for file in sorted((ROOT / part).rglob("*.py")):
            words = list(file.relative_to(ROOT).with_suffix("").parts)
            words = words[1:] if words[0] == "api" else words
            if words and words[-1] == "__init__":
                words.pop()
            found[".".join(["sigcam", *words])] = file
    return found


def part_of(module: str) -> str:
    """The folder that a module stands in."""
    return modules()[module].relative_to(ROOT).parts[0]


def imported_by(tree: ast.AST) -> set[str]:
    """The modules that a file's imports name, wherever they stand."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of ours that a module imports, also in functions and for types only."""
    named = imported_by(ast.parse(modules()[module].read_text(encoding="utf-8")))
    return frozenset(named & modules().keys()) - {module}


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_go_downwards(part):
    allowed = MAY_IMPORT[part] | {part}
    wrong = [
        f"{module} imports {other}"
        for module in modules()
        if part_of(module) == part
        for other in sorted(imports(module))
        # The package's own front door holds no code but the table of its names.
        if part_of(other) not in allowed and not (other == "sigcam" and part == "demo")
    ]
    assert not wrong


def test_the_table_has_no_circle():
    for part, allowed in MAY_IMPORT.items():
        assert all(part not in MAY_IMPORT[other] for other in allowed)


@pytest.mark.parametrize("part", MUST_NOT_IMPORT)
def test_what_a_part_does_without(part):
    wrong = []
    for module, file in modules().items():
        if part_of(module) == part:
            named = imported_by(ast.parse(file.read_text(encoding="utf-8")))
            roots = {name.partition(".")[0] for name in named}
            wrong += [f"{module} imports {name}" for name in sorted(roots & MUST_NOT_IMPORT[part])]
    assert not wrong


def test_no_files_import_in_a_circle():
    """A package's own __init__ counts as a file, but importing one of its modules isn't it."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            circle = [*path[path.index(module) :], module]
            pytest.fail("files import in a circle: " + " -> ".join(circle))
        if module in done:
            return
        for other in sorted(imports(module)):
            if not module.startswith(f"{other}.") and other != "sigcam":
                visit(other, [*path, module])
        done.add(module)

    for module in modules():
        visit(module, [])


def test_the_table_is_the_one_in_the_design():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)/` \|[^|]*\|[^|]*\| ([^|]*) \|$", page, re.MULTILINE))
    assert rows.keys() == MAY_IMPORT.keys()
    for part, text in rows.items():
        named = set(re.findall(r"\w+", text)) - {"nothing", "all"}
        wanted = MAY_IMPORT[part]
        assert named == (set() if text in ("nothing", "all") else wanted), part
        assert (text == "all") == (len(wanted) == len(MAY_IMPORT) - 1), part
        assert (text == "nothing") == (not wanted), part


def test_every_folder_with_code_is_packaged():
    """A folder that pyproject.toml doesn't list would be missing from the wheel."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'^    "(sigcam[\w.]*)",$', project, re.MULTILINE))
    wanted = {module for module, file in modules().items() if file.name == "__init__.py"}
    assert listed == wanted


def test_files_have_one_job():
    """About 500 lines at most; a file that outgrows that has two jobs."""
    long = {
        str(file.relative_to(ROOT)): count
        for file in modules().values()
        if (count := len(file.read_text(encoding="utf-8").splitlines())) > 520
    }
    assert not long
