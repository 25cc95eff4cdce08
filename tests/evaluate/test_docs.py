"""The Python of docs/evaluation.md runs, and the numbers of both ways are the same."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytest.importorskip("onnxruntime")
PAGE = ROOT / "docs" / "evaluation.md"


def test_the_examples_run(artifact, squares, tmp_path, monkeypatch, capsys):
    shutil.copy(artifact(), tmp_path / "model.onnx")
    shutil.copytree(squares, tmp_path / "my-data")
    monkeypatch.chdir(tmp_path)
    whole, by_hand = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    exec(whole, {})
    assert "MaxBoxAccV2 Estimate(value=" in capsys.readouterr().out
    found = json.loads(Path("evaluation/report.json").read_text())["metrics"]
    assert "road" in found
    exec(by_hand, {})
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    for label, key in (("MaxBoxAccV2", "max_box_acc_v2"), ("PxAP", "pxap")):
        want = found[key]["artifacts"][0]["value"]
        assert float(printed[label]) == pytest.approx(want, abs=1e-9)


def test_every_metric_and_option_is_on_the_page():
    import sigcam.evaluate
    from sigcam.cli.evaluate import command

    text = PAGE.read_text(encoding="utf-8")
    for name in sigcam.evaluate.__all__:
        assert name in text or name == "Evaluation", name
    for option in re.findall(r"`(--[a-z-]+)", text.partition("## In Python")[0]):
        known = {name for one in command.params for name in one.opts}
        assert option in known | {"--classes", "--size", "--task"}, option
    for path in re.findall(r"`((?:evaluate|benchmarks)/[\w/]+(?:\.py|/))`", text):
        assert (ROOT / path).exists(), path
