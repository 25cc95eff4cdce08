"""`sigcam explain --method`: methods of several passes from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from sigcam.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def split(work, tmp_path_factory):
    """The toy model with features, its classes named at run time."""
    path = tmp_path_factory.mktemp("split") / "split.onnx"
    options = ["--classes", "input", "--profile", "split", "--out", str(path)]
    made = CliRunner().invoke(main, ["export", "--sigmoid-branch", str(work.branch), *options])
    assert made.exit_code == 0, made.stderr
    return path


@pytest.mark.parametrize(("method", "most"), [("scorecam", 9), ("eigencam", 1)])
def test_another_method(work, cli, split, method, most):
    arguments = ("explain", split, work.data, "--json", "--method", method, "--class", "red")
    found = cli(*arguments, "--class", "green")
    assert found.exit_code == 0, found.stderr
    assert found.stderr == ""  # no bar where nobody watches
    records = [json.loads(line) for line in found.stdout.splitlines()]
    assert len(records) == 8
    for record in records:
        for one, label in zip(record["explanations"], ("red", "green"), strict=True):
            assert (one["label"], one["method"]) == (label, method)
            assert 1 <= one["passes"] <= most


def test_rise_and_its_numbers(work, cli, tmp_path):
    image = sorted(work.data.glob("red/*"))[0]
    arguments = ("explain", work.named, image, "--json", "--method", "rise", "--masks", "6")
    arguments += ("--cells", "3", "--keep", "0.6", "--format", "npz")
    cams = {}
    for name, more in (("zero", ()), ("same", ("--seed", "0")), ("other", ("--seed", "1"))):
        found = cli(*arguments, *more, "--out", tmp_path / name)
        assert found.exit_code == 0, found.stderr
        [one] = json.loads(found.stdout)["explanations"]
        assert (one["method"], one["passes"]) == ("rise", 7)
        [file] = (tmp_path / name).iterdir()
        cams[name] = np.load(file)["cam"]
    np.testing.assert_array_equal(cams["zero"], cams["same"])
    assert np.abs(cams["zero"] - cams["other"]).max() > 0.01


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--masks", "9"), "no option of the artifact's own method"),
        (("--method", "rise", "--masks", "0"), "masks must be a whole number"),
        (("--method", "rise", "--keep", "1.5"), "keep is the share of cells"),
    ],
)
def test_numbers_that_cannot_be(work, cli, options, says):
    found = cli("explain", work.named, work.data, *options)
    assert found.exit_code == 2
    assert says in found.stderr


@pytest.mark.parametrize(
    ("artifact", "method", "says"),
    [
        ("named", "scorecam", "--features"),
        ("split", "ablationcam", "head graph"),
        ("split", "gradcam", "scorecam, ablationcam, eigencam"),
    ],
)
def test_what_the_artifact_cannot_give(work, cli, split, artifact, method, says):
    path = split if artifact == "split" else work.named
    found = cli("explain", path, work.data, "--method", method)
    assert found.exit_code == 2
    assert says in found.stderr
    assert found.stdout == ""


def test_a_head_graph_that_is_missing(work, cli, split, tmp_path):
    found = cli("explain", split, work.data, "--head", tmp_path / "absent.onnx")
    assert found.exit_code == 2
    assert "without a head graph" in found.stderr


def test_the_meter_counts_passes_of_all_images():
    from sigcam.cli.explain.output import Meter

    class Bar:
        def __init__(self):
            self.seen = []

        def advance_to(self, done):
            self.seen.append(done)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.closed = True

    meter = Meter(2, 4)
    meter._bar = bar = Bar()

    def results():
        meter.report(1, 4)
        meter.report(3, 4)
        yield "first"  # its last pass wasn't needed
        meter.report(2, 4)
        yield "second"

    assert list(meter.count(results())) == ["first", "second"]
    assert bar.seen == [1, 3, 4, 6, 8]
    assert bar.closed
