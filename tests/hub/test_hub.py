"""`sigcam push`, `sigcam pull` and `sigcam.load("hf://...")` with the Hub's real client."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sigcam.core.artifact import read_spec
from sigcam.core.digest import BRANCH_DIGEST_FIELD, ZEROS, find_digest, seal
from sigcam.core.spec import OutputError, ParityReport
from tests.support.tiny import tiny_spec, with_data_file

pytestmark = pytest.mark.slow  # each command is a process of its own

LOAD = """
import sys, numpy as np, sigcam
with sigcam.load(sys.argv[1], "ort") as session:
    image = np.random.default_rng(0).integers(0, 255, (60, 70, 3), dtype=np.uint8)
    best = session.explain(image)[0]
    print(best.label, best.cam.sum())
"""


def parity() -> ParityReport:
    return ParityReport(
        "torch 2.14",
        "onnxruntime",
        1e-4,
        (1, 2),
        "noise",
        {"cams": OutputError(1e-6, 2e-6)},
    )


def test_there_and_back(sigcam, hub, make_artifact) -> None:
    spec = tiny_spec(head_input="features")
    path = make_artifact(head="mlp", head_input="features", parity=parity())
    branch = path.parent / "branch.safetensors"
    data = b'{"sigcam_digest":"' + ZEROS.encode() + b'"}'
    branch.write_bytes(seal(data, find_digest(data, BRANCH_DIGEST_FIELD)))
    with_data_file(path)
    done = sigcam("push", path, "owner/name", "--sigmoid-branch", branch, "--license", "mit")
    assert (done.returncode, done.stdout) == (0, "hf://owner/name/model.onnx\n"), done.stderr
    files = hub.repositories["owner/name"]["main"]
    wanted = {"README.md", "model.onnx", "model.onnx.data", "model.head.onnx", "branch.safetensors",
              "model.parity.json"}  # fmt: skip
    assert files.keys() == wanted
    for file in ("model.onnx", "model.onnx.data", "model.head.onnx", "branch.safetensors"):
        assert files[file] == (path.parent / file).read_bytes()
    assert json.loads(files["model.parity.json"]) == json.loads(json.dumps(asdict(parity())))
    done = sigcam("pull", "owner/name", "--out", "there")
    assert done.returncode == 0, done.stderr
    found = Path(done.stdout.strip())
    spec = replace(spec, parity=parity(), external_data=read_spec(path).external_data)
    assert read_spec(found) == spec
    assert {file.name for file in found.parent.iterdir() if file.is_file()} == wanted
    for file in wanted:
        assert (found.parent / file).read_bytes() == files[file]


def test_what_was_damaged_is_neither_pushed_nor_pulled(sigcam, hub, published) -> None:
    whole = published.read_bytes()
    damaged = whole.replace(b"tiny", b"tinY", 1)
    published.write_bytes(damaged)
    done = sigcam("push", published, "owner/name")
    assert (done.returncode, "is not what was written" in done.stderr) == (1, True), done.stderr
    assert "owner/name" not in hub.repositories
    hub.repositories["owner/name"] = {"main": {"model.onnx": damaged}}
    for extra in ([], ["--out", "there"]):
        done = sigcam("pull", "owner/name", *extra)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert "is not what was written" in done.stderr
        assert "pull it again" in done.stderr
    branch = published.with_name("branch.safetensors")
    branch.write_bytes(b"tensors")
    published.write_bytes(whole)
    done = sigcam("push", published, "owner/name", "--sigmoid-branch", branch)
    assert (done.returncode, "no digest of a branch file" in done.stderr) == (1, True), done.stderr


def test_explained_from_the_hub_and_then_without_a_network(
    sigcam, hub, published, tmp_path, monkeypatch
) -> None:
    pytest.importorskip("onnxruntime")
    assert sigcam("push", published, "owner/name").returncode == 0
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))

    def loaded(address):
        command = [sys.executable, "-c", LOAD, str(address)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    want = loaded(published)
    assert want.returncode == 0, want.stderr
    revision = next(iter(hub.repositories["owner/name"]))
    for address in ("hf://owner/name", f"hf://owner/name@{revision}/model.onnx"):
        got = loaded(address)
        assert got.stdout == want.stdout, got.stderr
    asked = len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert loaded("hf://owner/name").stdout == want.stdout
    assert len(hub.requests) == asked


def test_the_command_line_takes_an_address(sigcam, hub, published, tmp_path) -> None:
    import cv2
    import numpy as np

    cv2.imwrite(str(tmp_path / "a.png"), np.full((60, 60, 3), 200, np.uint8))
    assert sigcam("push", published, "owner/name").returncode == 0
    done = sigcam("explain", "hf://owner/name/model.onnx", "a.png", "--backend", "ort", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["explanations"][0]["label"] in tiny_spec().class_names
    done = sigcam("info", "hf://owner/name")
    assert done.returncode == 0, done.stderr
    assert "method" in done.stdout


def test_branches_private_repositories_and_cards(sigcam, hub, published) -> None:
    assert sigcam("push", published, "owner/name", "--private").returncode == 0
    assert hub.private == {"owner/name"}
    hub.repositories["owner/name"]["main"]["README.md"] = b"mine"
    assert sigcam("push", published, "owner/name", "--no-card").returncode == 0
    assert hub.repositories["owner/name"]["main"]["README.md"] == b"mine"
    done = sigcam("push", published, "owner/name@v2")
    assert done.stdout == "hf://owner/name@v2/model.onnx\n", done.stderr
    assert hub.repositories["owner/name"]["main"]["README.md"] == b"mine"
    assert b"# tiny" in hub.repositories["owner/name"]["v2"]["README.md"]
    assert sigcam("pull", "owner/name@v2", "--out", "v2").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "options", "code", "words"),
    [
        (["pull", "owner/none"], {}, 1, "the Hub has no repository owner/none, or it is private"),
        (["pull", "owner/name@v9"], {}, 1, "owner/name has no such revision"),
        (["pull", "owner/name/other.onnx"], {}, 1, "no file other.onnx; it has model.onnx"),
        (["pull", "owner/gated"], {}, 1, "is gated: accept its conditions on https://"),
        (["pull", "owner/empty"], {}, 1, "owner/empty holds no .onnx file; `sigcam push`"),
        (["pull", "owner/two"], {}, 1, "holds 2 exported models; name one: hf://owner/two/a.onnx"),
        (["pull", "owner/rubbish"], {}, 1, "model.onnx is not an ONNX file"),
        (["pull", "name"], {}, 2, "no name on the Hub; give owner/name"),
        (["pull", "own er/na me"], {}, 1, "is no name of a repository"),
        (
            ["pull", "owner/other"],
            {"offline": True},
            1,
            "(or HF_HUB_OFFLINE is set), and its cache",
        ),
        (["explain", "hf://owner/none", "x.png"], {}, 1, "the Hub has no repository owner/none"),
        (["push", "{file}", "owner/name"], {"token": None}, 1, "log in with `hf auth login`"),
        (["push", "{file}", "owner/name"], {"token": "hf_wrong"}, 1, "log in with `hf auth login`"),
        (["push", "{file}", "owner/name/model.onnx"], {}, 2, "name a repository, owner/name"),
        (["push", "none.onnx", "owner/name"], {}, 1, "there is no model file none.onnx"),
        (["push", "{head}", "owner/name"], {}, 1, "is a head graph; push the artifact"),
        (["push", "m.engine", "owner/name"], {}, 1, "is an engine, which runs on"),
        (
            ["push", "{file}", "owner/name", "--sigmoid-branch", "none"],
            {},
            1,
            "no branch file none",
        ),
    ],
)
def test_what_goes_wrong_is_told(arguments, options, code, words, sigcam, hub, published) -> None:
    model = published.read_bytes()
    hub.repositories |= {
        "owner/name": {"main": {"model.onnx": model}},
        "owner/gated": {"main": {"model.onnx": model}},
        "owner/empty": {"main": {"README.md": b""}},
        "owner/two": {"main": {"a.onnx": model, "b.onnx": model}},
        "owner/rubbish": {"main": {"model.onnx": b"rubbish"}},
    }
    hub.gated.add("owner/gated")
    head = published.with_name("model.head.onnx")
    done = sigcam(*(a.format(file=published, head=head) for a in arguments), **options)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "hf_" not in done.stderr.replace("HF_HUB", "")


def test_a_token_without_the_right(sigcam, hub, published) -> None:
    hub.cannot_write = True
    done = sigcam("push", published, "owner/name")
    assert done.returncode == 1
    assert "(HTTP 403); log in" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_hub_at_that_address(sigcam, published) -> None:
    done = sigcam("pull", "owner/name", endpoint="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "the Hub can't be reached" in done.stderr
    assert "Traceback" not in done.stderr
