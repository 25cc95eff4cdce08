"""How models are opened: what a server chooses, and what was asked for."""

from __future__ import annotations

import pytest

from sigcam.core.errors import UsageError
from sigcam.runtime.backends.base import BackendOptions
from sigcam.serve.served import BackendChoice


def session_options(choice, path, runs=1):
    with choice.open(str(path), runs) as model:
        return model.backend._session.get_session_options()


@pytest.mark.parametrize("name", ["ort", "auto"])
def test_idle_threads_do_not_spin(artifact, name):
    options = session_options(BackendChoice(name), artifact)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_runs_at_the_same_time_share_the_processors(artifact, monkeypatch):
    monkeypatch.setattr("sigcam.serve.served.thread_limit", lambda: 6)
    for runs, wanted in ((2, 3), (3, 2), (20, 1)):
        options = session_options(BackendChoice("ort"), artifact, runs)
        assert options.intra_op_num_threads == wanted
    asked = BackendChoice("ort", BackendOptions(threads=5))
    assert session_options(asked, artifact, 2).intra_op_num_threads == 5


def test_a_backend_gets_no_option_that_it_lacks(artifact):
    pytest.importorskip("openvino")
    with BackendChoice("openvino").open(str(artifact), 2) as model:
        assert model.backend.name == "openvino"


def test_what_was_asked_for_and_can_not_be_had_is_told(artifact):
    with pytest.raises(UsageError, match="backend must be"):
        BackendChoice("abacus").open(str(artifact))
    with pytest.raises(UsageError, match="no option precision"):
        BackendChoice("ort", BackendOptions(precision="fp16")).open(str(artifact))
