"""What errors of an export advise works: each case triggers one and then follows it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import ExportError, ParityError, SigcamError, UsageError
from sigcam.core.spec import Preprocessing
from sigcam.export import ExportOptions, export_artifact
from sigcam.export.export import completed_options
from sigcam.export.modules import CamGraph
from sigcam.export.randomise import Cascade

# The options that are wrong, what is said, and each thing that it advises.
OPTIONS = {
    "clamped scores": (
        {"method": "reciprocam", "nwc": True}, "leave nwc out, or choose another method",
        [{"method": "reciprocam"}, {"method": "gradcam", "nwc": True}],
    ),
    "signed scores": (
        {"method": "reciprocam", "signed": True}, "leave signed out, or choose another method",
        [{"method": "reciprocam"}, {"method": "gradcam", "signed": True}],
    ),
    "clamped positions": (
        {"method": "hirescam", "nwc": True}, "leave nwc out, or choose another method",
        [{"method": "hirescam"}, {"method": "gradcam", "nwc": True}],
    ),
    "split without weights": (
        {"method": "reciprocam", "profile": "split"}, "use the profile fused",
        [{"method": "reciprocam", "profile": "fused"}],
    ),
    "features of a method of the graph": (
        {"method": "gradcam", "profile": "features"},
        "use the method scorecam or eigencam, or the profile 'fused' with features=True",
        [{"method": "scorecam", "profile": "features"}, {"method": "eigencam"},
         {"method": "gradcam", "profile": "fused", "features": True}],
    ),
    "a head graph of a method of the runtime": (
        {"method": "scorecam", "head_graph": True},
        "leave that out, or choose a method of the graph",
        [{"method": "scorecam"}, {"method": "gradcam", "head_graph": True}],
    ),
    "a purpose and clamping": (
        {"purpose": "localise", "nwc": False}, "leave nwc out, or the purpose",
        [{"purpose": "localise"}, {"nwc": False}],
    ),
    "a purpose and sign": (
        {"purpose": "discriminate", "signed": True}, "leave signed out, or the purpose",
        [{"purpose": "discriminate"}, {"signed": True}],
    ),
    "no branch": (
        {"has_sigmoid": False},
        "export with branch='softmax' or 'centred' and without sigmoid_logits",
        [{"has_sigmoid": False, "branch": "softmax"}, {"has_sigmoid": False, "branch": "centred"}],
    ),
    "another method's option": (
        {"method": "gradcam", "method_options": {"gamma": 0.5}}, "leave it out",
        [{"method": "gradcam"}, {"method": "finercam", "method_options": {"gamma": 0.5}}],
    ),
    "more classes than there are": (
        {"classes": "top9"}, r"at most that many \(top7\)", [{"classes": "top7"}],
    ),
    "more similar classes than there are": (
        {"method": "finercam", "method_options": {"similar": 7}}, "set similar to at most 6",
        [{"method": "finercam", "method_options": {"similar": 6}}],
    ),
    "several layers multiplied, of one": (
        {"method": "refinecam"}, "or choose another method", [{"method": "gradcam++"}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIONS)
def test_advice_on_options_works(dual, case):
    wrong, words, right = OPTIONS[case]
    with pytest.raises(UsageError, match=words):
        CamGraph(dual, ExportOptions(**wrong))
    for options in right:
        CamGraph(dual, ExportOptions(**options))


# The same for the target layers [conv1, relu].
SEVERAL = {
    "split": ({"method": "gradcam", "profile": "split"}, "name one, or use the profile fused",
              {"method": "gradcam"}),
    "run time": ({"method": "eigencam"}, "name one, or use a method of the graph",
                 {"method": "layercam"}),
    "signed": ({"method": "gradcam", "signed": True}, "name one target layer, or leave signed out",
               {"method": "gradcam"}),
}  # fmt: skip


@pytest.mark.parametrize("case", SEVERAL)
def test_advice_on_several_target_layers_works(nets, dual, case):
    wrong, words, right = SEVERAL[case]
    two = DualBranch(nets["toy"](), input_size=(24, 32), target_layers=["conv1", "relu"])
    with pytest.raises(UsageError, match=words):
        CamGraph(two, ExportOptions(**wrong))
    CamGraph(dual, ExportOptions(**wrong))  # which has one
    CamGraph(two, ExportOptions(**right))


def test_layers_that_are_named_for_refinement_work(nets):
    with pytest.raises(UsageError, match="such as --target-layer") as got:
        CamGraph(DualBranch(nets["toy"](), input_size=(24, 32)), ExportOptions(method="refinecam"))
    layers = str(got.value).partition("such as ")[2].partition(",")[0]
    named = layers.replace("--target-layer ", "").split()
    assert len(named) > 1
    several = DualBranch(nets["toy"](), input_size=(24, 32), target_layers=named)
    CamGraph(several, ExportOptions(method="refinecam"))


def test_another_method_for_a_head_that_cam_cannot_express(make, nets):
    dual = make(nets["mlp"])
    with pytest.raises(ExportError, match="use gradcam, which is the same there"):
        CamGraph(dual, ExportOptions(method="cam"))
    CamGraph(dual, ExportOptions(method="gradcam"))


def test_the_sanity_check_of_a_method_of_the_runtime(dual):
    with pytest.raises(UsageError, match="such as gradcam or reciprocam"):
        Cascade(dual, ExportOptions(method="scorecam"))
    for method in ("gradcam", "reciprocam"):
        Cascade(dual, ExportOptions(method=method))


def test_a_classifier_that_can_have_no_branch(nets):
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nets["toy"](), nets["toy"]()

        def forward(self, x):
            return (self.one(x) + self.two(x)) / 2

    dual = DualBranch(Mean(), input_size=(24, 32), target_layers=["one.relu"])
    options = ExportOptions(method="gradcam")
    with pytest.raises(UsageError, match="use branch='softmax' or 'centred'"):
        completed_options(options, dual)
    for branch in ("softmax", "centred"):
        options = completed_options(ExportOptions(method="gradcam", branch=branch), dual)
        CamGraph(dual, options)


def test_preprocessing_of_another_size_or_number_of_channels(dual, nets):
    other = Preprocessing(24, 24)
    with pytest.raises(SigcamError, match=r"make the DualBranch with input_size=\(24, 24\)"):
        Cascade(dual, ExportOptions(preprocessing=other))
    Cascade(DualBranch(nets["toy"](), input_size=(24, 24)), ExportOptions(preprocessing=other))
    grey = Preprocessing(24, 32, mean=(0.5,), std=(0.5,))
    with pytest.raises(SigcamError, match=r"give 3 numbers each in ExportOptions.preprocessing"):
        Cascade(dual, ExportOptions(preprocessing=grey))
    colours = Preprocessing(24, 32, mean=(0.5,) * 3, std=(0.5,) * 3)
    Cascade(dual, ExportOptions(preprocessing=colours))


class Chosen(nn.Module):
    """Doubles the features of some images: chosen by a mask, or by `torch.where`."""

    def __init__(self, masked):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.masked = nn.Conv2d(3, 6, 3), nn.Linear(6, 5), masked

    def forward(self, x):
        z = self.conv(x).relu().mean((2, 3))
        bright = z[:, 0] > 0.1
        if not self.masked:
            return self.fc(torch.where(bright[:, None], 2 * z, z))
        y = z.clone()
        y[bright] = z[bright] * 2
        return self.fc(y)


@pytest.mark.slow
def test_values_chosen_by_values_in_the_head(tmp_path):
    sizes = {"preprocessing": Preprocessing(16, 16), "branch": "softmax", "has_sigmoid": False}
    dual = DualBranch(Chosen(masked=True), input_size=16)
    for method in ("cam", "gradcam"):
        with pytest.raises(ExportError, match=r"write it with torch.where .* scorecam or eigencam"):
            CamGraph(dual, ExportOptions(method=method, **sizes))
    CamGraph(DualBranch(Chosen(masked=False), input_size=16), ExportOptions("gradcam", **sizes))
    for method in ("scorecam", "eigencam"):
        path = tmp_path / f"{method}.onnx"
        assert export_artifact(dual, path, ExportOptions(method=method, **sizes)).parity


class Batched(nn.Module):
    """Normalises by the batch's own statistics, or by running ones."""

    def __init__(self, running):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=running)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.mark.slow
def test_statistics_of_the_batch(tmp_path):
    options = ExportOptions(preprocessing=Preprocessing(16, 16))
    with pytest.raises(ParityError, match="with track_running_stats=True"):
        export_artifact(
            DualBranch(Batched(running=False), input_size=16), tmp_path / "m.onnx", options
        )
    dual = DualBranch(Batched(running=True), input_size=16)
    assert export_artifact(dual, tmp_path / "m.onnx", options).parity
