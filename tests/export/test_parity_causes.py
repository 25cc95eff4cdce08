"""Networks that normalise their own input, and images that influence each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import ParityError
from sigcam.export.export import export_artifact
from sigcam.export.options import ExportOptions

OPTIONS = ExportOptions(method="gradcam")


def standardised(x):
    """Each image by its own mean and deviation."""
    return (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)


def each_channel(x):
    """Each channel by its own mean and deviation, which is 0 for one colour."""
    return (x - x.mean((2, 3), keepdim=True)) / x.var((2, 3), keepdim=True).sqrt()


def to_unit_range(x):
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (x - low) / (high - low)


def to_unit_channels(x):
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return (x - low) / (high - low)


class Net(nn.Module):
    """A small network behind something of its own."""

    def __init__(self, first, norm=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = first, norm or nn.Identity()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.lift, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x):
        x = self.lift(self.norm(self.body(self.first(x)))).tanh()
        return self.fc(x.mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("first", [each_channel, to_unit_channels])
def test_images_on_which_the_model_is_undefined_are_left_out(tmp_path, first):
    spec = export_artifact(DualBranch(Net(first), input_size=24), tmp_path / "m.onnx", OPTIONS)
    assert spec.parity.left_out == 2
    assert all(error.max_rel < 1e-4 for error in spec.parity.outputs.values())


@pytest.mark.slow
@pytest.mark.parametrize("first", [standardised, to_unit_range])
def test_a_scale_of_the_whole_image_counts_where_it_is_defined(tmp_path, first):
    # Black and white have different values in each channel once they are normalised.
    dual = DualBranch(Net(first), input_size=24)
    assert export_artifact(dual, tmp_path / "m.onnx", OPTIONS).parity.left_out == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(8, track_running_stats=False), "mean over the batch"]
)
def test_images_that_influence_each_other_are_named(tmp_path, norm):
    first = nn.Identity()
    if isinstance(norm, str):
        norm, first = None, lambda x: x - x.mean(0, keepdim=True)
    dual = DualBranch(Net(first, norm), input_size=24)
    with pytest.raises(ParityError, match="must not influence each other"):
        export_artifact(dual, tmp_path / "m.onnx", OPTIONS)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_classes_that_are_masked_out_are_named(tmp_path):
    model = Net(nn.Identity())
    hidden = torch.tensor([False, True, False, True])
    model.fc.register_forward_hook(lambda m, i, z: z.masked_fill(hidden, -torch.inf))
    options = ExportOptions(method="gradcam", branch="softmax", has_sigmoid=False)
    with pytest.raises(ParityError, match=r"of the classes \[1, 3\] are infinite \(masked out\)"):
        export_artifact(DualBranch(model, input_size=24), tmp_path / "m.onnx", options)
