"""The programs in examples/clients print what the session says, and write its overlay."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec

import cv2
import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra serve")

import sigcam
from tests.support.live_server import live_server
from tests.support.paths import ROOT

FOLDER = ROOT / "examples" / "clients"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(artifact):
    options = []
    try:
        import tritonclient.grpc  # noqa: F401
    except (ImportError, RuntimeError):
        pass
    else:
        options = ["--grpc-port", "0"]
    with live_server(f"tiny={artifact}", f"other={artifact}", *options) as found:
        yield found


@pytest.fixture(scope="module")
def file(tmp_path_factory, png):
    path = tmp_path_factory.mktemp("images") / "an image.png"
    path.write_bytes(png)
    return path


@pytest.fixture(scope="module")
def wanted(artifact, file):
    """Label, probability and boxes of the three most probable classes, and the first's overlay."""
    with sigcam.load(artifact, "ort") as session:
        found = session.explain(file, top_k=3)
        rows = [
            (one.label, f"{one.probability:.4f}", [list(box) for box in one.boxes()])
            for one in found
        ]
        return rows, found[0].overlay()


def run(*command):
    done = subprocess.run(
        [str(one) for one in command], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(out, rows, wanted):
    assert rows == wanted[0]
    assert np.array_equal(cv2.imread(str(out))[:, :, ::-1], wanted[1])


def table(text):
    rows = [line.split("\t") for line in text.splitlines()]
    return [(label, probability, json.loads(boxes)) for label, probability, boxes in rows]


def explained(text):
    return [
        (one["label"], f"{one['probability']:.4f}", one["boxes"])
        for one in json.loads(text)["explanations"]
    ]


@pytest.mark.parametrize("by_grpc", [False, True])
def test_tritonclient(server, file, wanted, tmp_path, by_grpc):
    package = "tritonclient.grpc" if by_grpc else "tritonclient.http"
    try:
        pytest.importorskip(package, reason="needs tritonclient")
    except RuntimeError:
        pytest.skip(f"{package} lacks packages: pip install 'tritonclient[http,grpc]'")
    address = server.grpc if by_grpc else server.url.partition("//")[2]
    words = ["--port", address.rpartition(":")[2], *(["--grpc"] if by_grpc else [])]
    program = FOLDER / "with_tritonclient.py"
    out = tmp_path / "map.png"
    text = run(sys.executable, program, file, out, "--model", "tiny", *words)
    check(out, table(text), wanted)


def test_kserves_client(server, file, wanted, tmp_path):
    # Not imported: in one process with tritonclient, both describe the same messages.
    if find_spec("kserve") is None:
        pytest.skip("needs KServe's package: pip install kserve")
    out = tmp_path / "map.png"
    words = ["--model", "tiny", "--url", server.url]
    text = run(sys.executable, "-W", "ignore", FOLDER / "with_kserve.py", file, out, *words)
    check(out, table(text), wanted)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server, file, wanted, tmp_path):
    out = tmp_path / "map.png"
    text = run("sh", FOLDER / "with_curl.sh", file, out, "tiny", server.url)
    check(out, explained(text), wanted)
    done = subprocess.run(
        ["sh", FOLDER / "with_curl.sh", file, out, "nope", server.url],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 22
    assert "'nope' is not found" in done.stdout


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_fetch(server, file, wanted, tmp_path):
    out = tmp_path / "map.png"
    text = run("node", FOLDER / "with_fetch.mjs", file, out, "tiny", server.url)
    check(out, table(text), wanted)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    program = tmp_path_factory.mktemp("c") / "with_libcurl"
    done = subprocess.run(
        [compiler, "-std=c99", "-Wall", "-Wextra", "-Werror", "-O2",
         FOLDER / "with_libcurl.c", "-lcurl", "-o", program],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "curl/curl.h" in done.stderr and done.returncode:
        pytest.skip("needs libcurl's headers (Debian: apt-get install libcurl4-openssl-dev)")
    assert done.returncode == 0, done.stderr
    return program


def test_libcurl(server, file, wanted, tmp_path, compiled):
    out = tmp_path / "map.png"
    check(out, explained(run(compiled, file, out, "tiny", server.url)), wanted)
    for words, reason in (
        ((file, out, "no pe", server.url), "'no pe' is not found"),
        (("no-such.png", out, "tiny", server.url), "no-such.png to"),
        ((file, out, "tiny", "http://127.0.0.1:9"), "connect to server"),
        ((file, tmp_path, "tiny", server.url), "Is a directory"),
    ):
        done = subprocess.run(
            [compiled, *words], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 1
        assert reason in done.stderr
