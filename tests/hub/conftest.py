"""Fixtures of this folder's tests: a stand-in for the Hub, and tiny artifacts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fake_hub import FakeHub
from tests.support.sessions import make_artifact  # noqa: F401 (a fixture)


@pytest.fixture
def hub(tmp_path):
    """A Hub of its own that keeps its repositories in memory."""
    pytest.importorskip("huggingface_hub")
    with FakeHub() as running:
        yield running


@pytest.fixture
def sigcam(hub, tmp_path):
    """Runs a command line in a process of its own, with the real client against the stand-in."""

    def run(*arguments, token="hf_right", offline=False, endpoint=None):
        settings = {
            "HF_ENDPOINT": endpoint or hub.address,
            "HF_HOME": str(tmp_path / "hub-cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        settings |= {"HF_TOKEN": token} if token else {}
        settings |= {"HF_HUB_OFFLINE": "1"} if offline else {}
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "COV"))}
        return subprocess.run(
            [sys.executable, "-m", "sigcam", *(str(a) for a in arguments)],
            env={**kept, **settings}, cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return run


@pytest.fixture
def published(make_artifact, tmp_path) -> Path:  # noqa: F811 (the fixture)
    """An artifact with a head graph and a branch file beside it."""
    path = make_artifact(head_input="features")
    (path.parent / "branch.safetensors").write_bytes(b"tensors")
    return path
