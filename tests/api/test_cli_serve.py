"""`sigcam serve` says what it can't begin with. What it does is tested in tests/serve."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from sigcam.cli import main


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["missing.onnx"], 1, "missing.onnx"),
        (["{folder}"], 2, "there is no model in"),
        (["{artifact}", "--queue-images", "4"], 2, "queue_images must be at least request_images"),
        (
            ["{artifact}", "--queue-images", "20", "--batch-size", "21"],
            2,
            "queue_images must be at least batch_size = 21",
        ),
        (["{artifact}", "--token-file", "missing"], 2, "cannot read the token's file"),
        (["{artifact}", "--token-file", "{folder}/empty"], 2, "must hold a token"),
        (["{artifact}", "--token-file", "{folder}/spaces"], 2, "must hold a token"),
        (["{artifact}", "--tls-key", "key.pem"], 2, "belongs to a certificate"),
        (["{artifact}", "--tls-client-ca", "ca.pem"], 2, "over TLS only"),
        (["{artifact}", "--tls-certificate", "none.pem"], 2, "TLS can't begin with none.pem"),
        (["{artifact}", "--tls-certificate", "{folder}/empty"], 2, "TLS can't begin with"),
        (["{artifact}", "--host", "203.0.113.1"], 2, "cannot listen on 203.0.113.1"),
        (["{artifact}", "--backend", "abacus"], 2, "backend must be"),
        (["{artifact}", "--image-format", "SVG"], 2, "SVG"),
        (["{artifact}", "cats={artifact}", "cats={artifact}"], 2, "two models are named 'cats'"),
        ([], 2, "MODELS"),
    ],
)
def test_what_does_not_begin(make_artifact, tmp_path, arguments, code, reason):
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "spaces").write_text("a b")
    filled = [one.format(artifact=make_artifact(), folder=tmp_path) for one in arguments]
    result = CliRunner().invoke(main, ["serve", *filled, "--port", "0"])
    assert result.exit_code == code, result.output
    assert reason in result.output
    assert "Traceback" not in result.output
