"""How models are opened: what a server chooses, and what was asked for."""

from __future__ import annotations

import pytest

from sigcam.core.errors import UsageError
from sigcam.runtime.backends.base import BackendOptions
from sigcam.serve.options import ServeOptions
from sigcam.serve.served import BackendChoice


def session_options(choice, path, runs=None):
    model, _ = choice.open(str(path), ServeOptions(parallel_runs=runs))
    with model:
        return model.backend._session.get_session_options()


@pytest.mark.parametrize("name", ["ort", "auto"])
def test_idle_threads_do_not_spin(artifact, name):
    options = session_options(BackendChoice(name), artifact)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_runs_at_the_same_time_share_the_processors(artifact, monkeypatch):
    monkeypatch.setattr("sigcam.serve.runs.thread_limit", lambda: 6)
    for runs, wanted in ((2, 5), (3, 4), (20, 1)):
        options = session_options(BackendChoice("ort"), artifact, runs)
        assert options.intra_op_num_threads == wanted
    asked = BackendChoice("ort", BackendOptions(threads=5))
    assert session_options(asked, artifact, 2).intra_op_num_threads == 5


def test_a_backend_gets_no_option_that_it_lacks(artifact):
    pytest.importorskip("openvino")
    model, _ = BackendChoice("openvino").open(str(artifact), ServeOptions(parallel_runs=2))
    with model:
        assert model.backend.name == "openvino"


def test_what_was_asked_for_and_can_not_be_had_is_told(artifact):
    with pytest.raises(UsageError, match="backend must be"):
        BackendChoice("abacus").open(str(artifact), ServeOptions())
    choice = BackendChoice("ort", BackendOptions(precision="fp16"))
    with pytest.raises(UsageError, match="no option precision"):
        choice.open(str(artifact), ServeOptions())
