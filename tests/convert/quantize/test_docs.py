"""docs/quantization.md names options that exist, and its Python runs."""

from __future__ import annotations

import re
import shutil

from sigcam.cli.quantize import command
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")
OF_OTHERS = {"--int8", "--part", "--network"}
"""Options of `sigcam build-engine` and of the benchmarks."""


def test_every_option_is_on_the_page_and_none_else():
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", PAGE)) - OF_OTHERS
    known = {name for one in command.params for name in one.opts if name.startswith("--")}
    assert named <= known
    # What --help says in full is missing from the page.
    assert known - named == {"--head", "--threads"}


def test_the_example_runs(artifacts, images, tmp_path, monkeypatch, capsys):
    shutil.copy(artifacts(method="cam"), tmp_path / "model.onnx")
    shutil.copytree(images, tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    [example] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    few = example.replace("128", "16").replace("0.97", "0.5")
    exec(few, {})
    assert "of 16 images agree" in capsys.readouterr().out
    assert (tmp_path / "model.int8.onnx").is_file()
