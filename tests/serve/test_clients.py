"""The page's block for Triton's client prints what it should, against a server on a port."""

from __future__ import annotations

import re

import pytest

from tests.serve.listening import listening
from tests.support.paths import ROOT

FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def port(client):
    """The port of a server of the tiny model."""
    with listening(client.app) as found:
        yield found


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # gevent's sockets
def test_tritons_client(port, png, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tritonclient.http")
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (block,) = (one for one in FENCE.findall(page) if "import tritonclient" in one)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.jpg").write_bytes(png)
    block = block.replace("localhost:8000", f"localhost:{port}").replace('"model"', '"tiny"')
    exec(compile(block, "serving.md", "exec"), {})
    assert capsys.readouterr().out.startswith("red 0.282 [[")
    assert (tmp_path / "heatmap.png").read_bytes().startswith(b"\x89PNG")
