"""The reports of an evaluation, written by the command."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from sigcam.cli import main
from sigcam.evaluate.reports.charts import Line, chart
from sigcam.evaluate.results.metrics import results
from sigcam.evaluate.results.records import RecordFile

pytest.importorskip("onnxruntime")
FILES = ["report.html", "report.md", "report.json", "images.csv"]


def run(*arguments):
    words = ["evaluate", *map(str, arguments), "--backend", "ort", "--resamples", "40"]
    return CliRunner().invoke(main, words)


@pytest.fixture(scope="module")
def told(artifact, squares, tmp_path_factory):
    """Three artifacts, evaluated by the command."""
    out = tmp_path_factory.mktemp("told") / "report"
    paths = [artifact(name="a&b.onnx"), artifact(mode="top1", rule="crop", name="<top>.onnx"),
             artifact(branch="softmax", nwc=False, name="soft.onnx")]  # fmt: skip
    done = run(*paths, "--data", squares, "--out", out)
    assert done.exit_code == 0, done.output
    return done, out, paths


def test_files_and_paths(told):
    done, out, _ = told
    assert done.stdout.split() == [str(out / name) for name in FILES]
    assert "12 images (wsol), 3 artifacts" in done.stderr
    assert "of it in a backend" in done.stderr


def test_the_page_stands_alone(told):
    _, out, _ = told
    page = (out / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in page.replace("http-equiv", "")
    assert "a&amp;b.onnx" in page
    assert "&lt;top&gt;.onnx" in page
    assert "<top>" not in page
    assert page.count("data:image/jpeg;base64,") == 3 * 12  # six worst, six best
    assert page.count("<polyline") == 3 + 3 * 3 + 3
    assert page.count('class="rule"') == 3 * 12  # three charts of six lines each way
    assert ".rule {" in page
    assert "$" not in page


def test_json_markdown_and_images_say_the_same(told):
    _, out, _ = told
    report = json.loads((out / "report.json").read_text())
    rows = list(csv.DictReader((out / "images.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == [f"images/{i}.png" for i in range(12)]
    known = report["metrics"]["gt_known"]
    for artifact, numbers in zip(report["artifacts"], known["artifacts"], strict=True):
        name = artifact["name"]
        share = np.mean([float(row[f"{name}: iou"]) >= 0.5 for row in rows]) * 100
        assert numbers["value"] == pytest.approx(share)
        low, high = numbers["interval"]
        assert low <= numbers["value"] <= high
    assert report["artifacts"][0]["heatmap_of"] == "the true class"
    assert report["artifacts"][1]["heatmap_of"].startswith("the predicted class")
    table = (out / "report.md").read_text()
    for one in report["metrics"].values():
        assert one["label"] in table
        assert f"{one['artifacts'][0]['value']:.2f}" in table


def test_json_and_images_are_exact(told):
    """Only the pages round: what programs read is the number itself."""
    _, out, _ = told
    report = json.loads((out / "report.json").read_text())
    records = [RecordFile(out / f"{index}.records").read() for index in range(3)]
    found = results(records, 0.2, resamples=40)
    assert list(report["metrics"]) == [one.metric.key for one in found]
    rounded = 0
    for one in found:
        for numbers, want in zip(
            report["metrics"][one.metric.key]["artifacts"], one.artifacts, strict=True
        ):
            assert numbers["value"] == want.metric.value
            assert numbers["interval"] == [want.metric.low, want.metric.high]
            assert numbers["difference"] == want.difference.value
            assert numbers["difference_interval"] == [want.difference.low, want.difference.high]
            rounded += numbers["value"] != round(numbers["value"], 4)
    assert rounded > 10  # four decimals would not do
    rows = list(csv.DictReader((out / "images.csv").read_text().splitlines()))
    for artifact, of_artifact in zip(report["artifacts"], records, strict=True):
        for row, record in zip(rows, of_artifact, strict=True):
            for column in ("probability", "iou", "energy", "after"):
                assert np.float32(row[f"{artifact['name']}: {column}"]) == record[column], column


def test_going_on_and_refusing(told, squares):
    _, out, paths = told
    again = run(*paths, "--data", squares, "--out", out)
    assert again.exit_code == 0
    assert "0 images in" in again.stderr
    other = run(*paths, "--data", squares, "--out", out, "--threshold", "0.5")
    assert other.exit_code == 2
    assert "evaluation with other options" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--threshold", "0.12345"], 2, "0, 0.001, ..., 0.999"),
        (["--faithfulness", "none", "--faithfulness", "road"], 2, "goes with no other"),
        (["--format", "voc"], 1, "is no data set of these forms"),
        (["--batch-size", "0"], 2, "--batch-size"),
        (["--seed", "-1"], 2, "--seed"),
    ],
)
def test_wrong_usage(artifact, squares, tmp_path, arguments, code, said):
    done = run(artifact(), "--data", squares, "--out", tmp_path / "out", *arguments)
    assert done.exit_code == code, done.output
    assert said in done.stderr
    assert not (tmp_path / "out" / "report.json").exists()


def test_bad_data_are_listed_before_any_work(artifact, squares, tmp_path):
    broken = tmp_path / "data"
    shutil.copytree(squares, broken)
    (broken / "images" / "2.png").unlink()
    (broken / "masks" / "7.png").unlink()
    done = run(artifact(), "--data", broken, "--out", tmp_path / "out")
    assert done.exit_code == 1
    for part in ("image_ids.txt, line 3", "masks.txt, line 8"):
        assert part in done.stderr
    assert not (tmp_path / "out").exists()
    done = run(artifact(), "--data", broken, "--out", tmp_path / "out", "--skip-bad")
    assert done.exit_code == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["dataset"]["images"] == 10
    assert len(report["dataset"]["left_out"]) == 2
    assert "masks.txt, line 8" in (tmp_path / "out" / "report.html").read_text()


def test_only_class_folders(artifact, squares, tmp_path):
    """No boxes and no masks: classification and faithfulness only."""
    for index, name in enumerate(("red", "green", "blue")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(index, 12, 3):
            shutil.copy(squares / "images" / f"{number}.png", tmp_path / "data" / name)
    done = run(artifact(), "--data", tmp_path / "data", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "report.json").read_text())["metrics"]
    assert set(found) == {"top1_cls", "class_sensitivity", "average_drop", "increase"}
    assert found["top1_cls"]["artifacts"][0]["value"] == 100


def test_a_chart_has_what_changes():
    x = np.arange(1000) / 1000
    steps = np.where(x < 0.5, 80.0, 20.0)
    text = chart([Line("a < b", x, steps, 0)], "x", "y", 1, 100)
    points = re.search(r'points="([^"]*)"', text).group(1).split()
    assert len(points) == 4
    assert "a &lt; b" in text
    gap = steps.copy()
    gap[::3] = np.nan
    assert "nan" not in chart([Line("g", x, gap, 1)], "x", "y", 1, 100)


def test_the_command_offers_what_there_is():
    """It names formats and metrics itself, so that --help imports nothing."""
    from sigcam.cli import data as options
    from sigcam.cli import evaluate as command
    from sigcam.data import FORMATS
    from sigcam.evaluate.faithfulness.measure import FAITHFULNESS

    assert ["auto", *FORMATS] == options._FORMATS
    assert tuple(command._FAITHFULNESS) == FAITHFULNESS
