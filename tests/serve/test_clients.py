"""The page's block for Triton's client prints what it should, against a server on a port."""

from __future__ import annotations

import re
import threading

import pytest
import uvicorn

from sigcam.serve.server import listen
from tests.support.paths import ROOT

FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def port(client):
    """The port of a server of the tiny model."""
    with listen("127.0.0.1", 0) as opened:
        config = uvicorn.Config(client.app, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([opened],))
        thread.start()
        yield opened.getsockname()[1]
        server.should_exit = True
        thread.join()


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
