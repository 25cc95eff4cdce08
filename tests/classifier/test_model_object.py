"""What users give as the model: wrappers come off, and what is none gets an error that helps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.model_object import plain_model
from sigcam.classifier.split import split
from sigcam.classifier.zoo.user import load
from sigcam.core.errors import ModelError, UsageError

# torch deprecates what users' models still are: scripted and quantised modules.
pytestmark = pytest.mark.filterwarnings("ignore")
IMAGES = torch.zeros(1, 3, 8, 8)
B = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


class AnyArguments(Net):
    def forward(self, *args, **kwargs):
        return Net.forward(self, args[0])


class Keywords(Net):
    def forward(self, x, *args, scale=1.0, **kwargs):
        return Net.forward(self, x) * scale


def compiled_in_place():
    model = Net()
    model.compile()
    return model


WRAPPED = {
    "DataParallel": lambda: nn.DataParallel(Net()),
    "torch.compile": lambda: torch.compile(Net()),
    "compile in place": compiled_in_place,
    "both": lambda: nn.DataParallel(torch.compile(Net())),
    "AveragedModel": lambda: AveragedModel(Net()),
    "a layer": lambda: nn.Sequential(nn.DataParallel(Net()), nn.Identity()),
    "a compiled layer": lambda: nn.Sequential(torch.compile(Net()), nn.Identity()),
    "any arguments": AnyArguments,
    "keywords": Keywords,
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrapped_models_just_work(case):
    model = WRAPPED[case]()
    names = set(model.state_dict())
    dual = DualBranch(model, example=IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(dual(B).logits, Net()(B))
    layer = "0.conv" if "layer" in case else "conv"
    assert f"{layer}.weight" in dual.classifier_tensors()
    assert DualBranch(model, layer, IMAGES).branch_layer == layer
    assert set(model.state_dict()) == names
    if "layer" not in case and "compile" not in case:
        assert dual.architecture in ("Net", "AnyArguments", "Keywords")


def test_a_distributed_model_needs_no_process_group_here():
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    model = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(model)
    model.module = Net()
    assert isinstance(plain_model(model), Net)


def scripted(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def lazy():
    return nn.Sequential(
        nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )


def exported():
    return torch.export.export(Net().eval(), (torch.zeros(2, 3, 8, 8),))


def quantisable():
    return nn.Sequential(
        torch.ao.quantization.QuantStub(), nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 5), torch.ao.quantization.DeQuantStub(),
    )  # fmt: skip


def prepared():
    model = quantisable().train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
    made = torch.ao.quantization.prepare_qat(model)
    made(torch.randn(2, 3, 8, 8))
    return made.eval()


def converted():
    return torch.ao.quantization.convert(copy.deepcopy(prepared()))


def dynamic():
    return torch.ao.quantization.quantize_dynamic(Net())


NONE = {
    "class": (lambda: Net, r"got the class Net; make one, Net\(\.\.\.\)"),
    "function": (lambda: lazy, "got the function lazy; if it makes the network, call it"),
    "lambda": (lambda: lambda x: x, "got the function <lambda>"),
    "state dict": (lambda: Net().state_dict(), "got a state dict; make the network"),
    "checkpoint": (lambda: {"epoch": 3}, "got a dict; make the network"),
    "exported program": (exported, "give the module that it was exported from"),
    "script module": (lambda: torch.jit.script(Net()), "it is a TorchScript module; give the mod"),
    "script function": (lambda: torch.jit.script(scripted), "got a TorchScript function"),
    "scripted layer": (
        lambda: nn.Sequential(torch.jit.script(nn.Conv2d(3, 6, 3)), nn.Flatten()),
        "its layer '0' is a TorchScript module; give",
    ),
    "traced layer": (
        lambda: nn.Sequential(torch.jit.trace(nn.Conv2d(3, 6, 3), IMAGES), nn.Flatten()),
        "its layer '0' is a TorchScript module; give",
    ),
    "path": (lambda: "model.pt", "got str; make the network in Python"),
    "nothing": (lambda: None, "got NoneType"),
    "quantised": (converted, r"quantised \(Quantize\); give the float model .*sigcam quantize"),
    "quantised dynamically": (dynamic, "its layer 'fc' is quantised"),
    "QAT": (prepared, r"its layer .* imitates or prepares quantisation"),
    "lazy": (lazy, "its layer '0' is lazy .*; call the model once"),
    "meta": (lambda: Net().to("meta"), r"on the device meta.*load_state_dict\(..., assign=True\)"),
}


@pytest.mark.parametrize("case", NONE)
def test_what_is_no_model_is_refused_with_what_to_do(case):
    make, words = NONE[case]
    given = make()
    for use in (lambda: DualBranch(given, example=IMAGES), lambda: split(given, IMAGES)):
        with pytest.raises(ModelError, match=words):
            use()


def test_following_the_advice_works():
    model = quantisable()
    model.load_state_dict(prepared().state_dict(), strict=False)
    assert split(model, IMAGES).num_classes == 5
    called = lazy()
    called(IMAGES)
    assert split(called, IMAGES).num_classes == 5


USER = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

ready = Net()
state = ready.state_dict()
number = 3
def wrapped(): return nn.DataParallel(Net())
def weights(): return state
def the_class(): return Net
def script(): return torch.jit.script(Net())
"""


@pytest.fixture
def user(tmp_path):
    path = tmp_path / "user_net.py"
    path.write_text(USER)
    return path


@pytest.mark.parametrize("name", ["Net", "ready", "wrapped"])
def test_a_users_callable_or_network(user, name):
    model = load(f"{user}:{name}", None, None).model
    assert type(model).__name__ == "Net"


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("weights", ModelError, "weights can't be used: .* got a state dict; make the network"),
        ("the_class", ModelError, "got the class Net; make one"),
        ("script", ModelError, "TorchScript module"),
        (
            "state",
            UsageError,
            "'state' of .* must be a function or class .* is of type OrderedDict",
        ),
        ("number", UsageError, "it is of type int"),
        ("absent", UsageError, "has no callable 'absent'"),
    ],
)
def test_a_users_name_that_is_none(user, name, error, words):
    with pytest.raises(error, match=words):
        load(f"{user}:{name}", None, None)


def test_a_ready_network_has_its_number_of_classes(user):
    with pytest.raises(UsageError, match="leave the number of classes out"):
        load(f"{user}:ready", None, 5)
