"""`sigcam sanity` on a toy model: its table, its file, and what it refuses."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from sigcam.cli.sanity import spread

pytestmark = pytest.mark.slow


@pytest.fixture
def sanity(work, cli):
    def run(*options):
        return cli("sanity", "--sigmoid-branch", work.branch, "--data", work.data, *options)

    return run


def test_a_line_for_each_stage_and_the_same_in_a_file(sanity, tmp_path):
    found = sanity("--limit", 5, "--seed", 2, "--out", tmp_path / "sanity.json")
    assert found.exit_code == 0, found.stderr
    head, *rows = found.stdout.splitlines()
    assert head.split()[-3:] == ["Pearson", "Spearman", "constant"]
    assert [row.split()[0] for row in rows] == ["head", "2", "0"]
    report = json.loads((tmp_path / "sanity.json").read_text())
    assert (report["images"], report["seed"], report["branch"]) == (5, 2, "sigmoid")
    assert f"{report['stages'][0]['pearson']['value']:.2f} (" in rows[0]
    assert "5 images" in found.stderr
    assert sanity("--limit", 5, "--seed", 2).stdout == found.stdout


def test_it_takes_the_options_of_the_map(sanity, tmp_path):
    out = tmp_path / "sanity.json"
    given = ["--branch", "softmax", "--no-nwc", "--signed", "--method", "gradcam", "--limit", 2]
    assert sanity(*given, "--out", out).exit_code == 0
    report = json.loads(out.read_text())
    assert (report["method"], report["branch"]) == ("gradcam", "softmax")
    assert (report["nwc"], report["signed"]) == (False, True)


def test_the_softmax_branch_needs_no_branch_file(work, cli):
    model = ["--arch", work.arch, "--num-classes", 2, "--data", work.data, "--size", 32]
    assert cli("sanity", *model, "--branch", "softmax").exit_code == 0
    refused = cli("sanity", *model)
    assert refused.exit_code == 2
    assert "--sigmoid-branch" in refused.stderr


def test_refusals(sanity, tmp_path):
    assert sanity("--limit", 0).exit_code == 2
    assert sanity("--out", tmp_path).exit_code != 0
    missing = sanity("--data", tmp_path / "missing")
    assert missing.exit_code == 1
    assert "doesn't exist" in missing.stderr


@pytest.mark.parametrize("method", ["scorecam", "eigencam"])
def test_methods_of_the_runtime_name_those_that_work(sanity, method):
    refused = sanity("--method", method, "--limit", 2)
    assert refused.exit_code == 2
    assert f"the maps of {method} are computed by the runtime" in refused.stderr
    assert "such as gradcam or reciprocam" in refused.stderr
    for instead in ("gradcam", "reciprocam"):
        assert sanity("--method", instead, "--limit", 2).exit_code == 0


def test_images_are_spread_over_the_data_set():
    samples = [SimpleNamespace(label=n) for n in range(10)]
    assert [one.label for one in spread(samples, 4)] == [0, 2, 5, 7]
    assert spread(samples, 100) == samples
    assert spread([], 3) == []
