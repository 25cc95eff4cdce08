"""The model card says what the spec says; names and errors without a network."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from sigcam.core.errors import HubError, UsageError
from sigcam.core.spec import FidelityReport, OutputError, ParityReport, Source
from sigcam.hub.card import model_card
from sigcam.hub.errors import hub_error
from sigcam.hub.names import HubName
from sigcam.hub.pull import pull
from sigcam.runtime.session import load
from tests.support.tiny import tiny_spec


def full():
    parity = ParityReport(
        "torch 2.14.1 float64", "onnxruntime 1.32.0", 1e-4, (1, 2), "5 images",
        {"logits": OutputError(1.5e-6, 2.5e-7), "cams": OutputError(3e-6, 4e-6)},
    )  # fmt: skip
    fidelity = FidelityReport(
        "int8", "onnxruntime", 100, 64, 0, 0.99, 99, 0.998, 0.97, None, 0.9, 0.9
    )
    source = Source(
        "resnet50", "ab" * 32, "cd" * 32, "CUB, 5,994 images | 12 views", {"torch": "2"}
    )
    return replace(tiny_spec(), parity=parity, fidelity=fidelity, source=source, purpose="localise")


def test_all_of_it() -> None:
    card = model_card(full(), "owner/name", "m.onnx", "cc-by-4.0", "branch.safetensors")
    head, rest = card.split("---\n", 2)[1:]
    assert "library_name: sigcam\n" in head
    assert "license: cc-by-4.0\n" in head
    for words in (
        "# resnet50 with class evidence maps", 'sigcam.load("hf://owner/name/m.onnx")',
        "| method | cam |", "| purpose | localise: where the object is", "trained beside",
        "mean 0.485, 0.456, 0.406", "CUB, 5,994 images / 12 views", "`branch.safetensors`",
        "| logits | 1.5e-06 | 2.5e-07 |", "| cams | 3e-06 | 4e-06 |", "99.0% of 100 images agree",
        "0 red, 1 green, 2 blue", "cc-by-4.0, as named by who published this",
    ):  # fmt: skip
        assert words in rest, words


def test_what_is_not_known_is_said() -> None:
    card = model_card(replace(tiny_spec(), class_names=()), "o/n", "m.onnx", None, None)
    assert "license:" not in card
    assert "None was named." in card
    assert "no parity report" in card
    assert "4 classes without names" in card
    assert "branch file" not in card


@pytest.mark.parametrize(
    "name",
    ["", "name", "hf://", "hf://owner", "owner/", "/name", "owner/name@", "o/n/../../x.onnx"],
)
def test_names_that_are_none(name) -> None:
    with pytest.raises(UsageError, match="no name on the Hub"):
        HubName.parse(name)


def test_the_client_is_an_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (pull, load):
        with pytest.raises(HubError, match=r'pip install "sigcam\[hub\]"'):
            call("hf://owner/name")


def test_the_error_may_lie_deep_in_the_chain() -> None:
    class GatedRepoError(Exception):
        pass

    try:
        try:
            raise GatedRepoError("401")
        except GatedRepoError as exc:
            raise OSError("can't load") from exc
    except OSError as exc:
        assert "o/n is gated" in str(hub_error("o/n", exc))
    assert hub_error("o/n", OSError("disk full")) is None
