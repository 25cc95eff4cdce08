"""Which images count for a parity report."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.rewrite import in_double
from sigcam.core.errors import ParityError
from sigcam.core.spec import Preprocessing
from sigcam.export.options import ExportOptions
from sigcam.export.parity import run as module
from sigcam.export.parity.compare import is_unstable, logit_floors
from sigcam.export.parity.inputs import as_images, normalised
from sigcam.export.parity.reference import Reference
from sigcam.export.parity.run import MAX_FURTHER, MIN_COUNTED, ParityRun

IDS = np.array([[2, 0]])
TOLERANCE = 1e-4


@pytest.fixture
def parity_run(dual, preprocessing):
    return ParityRun(dual, ExportOptions(method="gradcam", tolerance=TOLERANCE), preprocessing)


@pytest.fixture
def jumps(monkeypatch):
    """References of images whose gradient is said to jump."""
    found = set()

    def is_unstable(reference, *_):
        return reference in found

    monkeypatch.setattr(module, "is_unstable", is_unstable)
    return found


def add(parity_run, index, error):
    """A graph that is right but for a part of its CAMs."""
    want = parity_run.reference(index).outputs(module.torch.from_numpy(IDS))
    got = {name: want[name].numpy() for name in ("logits", "cams")}
    parity_run.add(index, {**got, "cams": got["cams"] * (1 + error)}, IDS)


def run_all(parity_run, jumps, wrong):
    """Adds every image; those in `wrong` are off, and their gradient jumps."""

    def run(part):
        for index in part:
            if index in wrong:
                jumps.add(parity_run.reference(index))
            add(parity_run, index, 0.1 if index in wrong else 0)

    run(range(5))
    parity_run.try_further_images(run)


def test_five_images_where_none_jumps(parity_run, jumps):
    run_all(parity_run, jumps, ())
    found = parity_run.report((1, 3, 8))
    parity_run.check_count("the graph")
    assert (found.left_out, found.batch_sizes) == (0, (1, 3, 8))
    assert "further" not in found.inputs
    assert found.outputs["cams"].max_rel < 1e-12


def test_further_images_until_enough_count(parity_run, jumps):
    run_all(parity_run, jumps, {0, 1, 2, 3, 5})
    found = parity_run.report((1,))
    parity_run.check_count("the graph")
    # 4 counts, 5 jumps too, 6 and 7 count.
    assert found.left_out == 5
    assert found.inputs.endswith("3 further smooth random ones")
    assert len(parity_run.images) == 5 + MAX_FURTHER
    assert len({image.tobytes() for image in parity_run.images}) == 5 + MAX_FURTHER


def test_too_few_that_count(parity_run, jumps):
    run_all(parity_run, jumps, set(range(MIN_COUNTED - 1, 5 + MAX_FURTHER)))
    with pytest.raises(ParityError, match="of 20 on 18 the gradient jumps"):
        parity_run.check_count("the graph")


def test_what_hangs_on_no_gradient_counts_on_every_image(parity_run, jumps):
    jumps.add(parity_run.reference(0))
    want = parity_run.reference(0).outputs(module.torch.from_numpy(IDS))
    logits, cams = (want[name].numpy() for name in ("logits", "cams"))
    parity_run.add(0, {"logits": logits * 1.5, "cams": cams * 1.1}, IDS)
    found = parity_run.report((1,))
    assert found.left_out == 1
    largest = max(abs(parity_run.reference(index).logits).max().item() for index in range(5))
    assert found.outputs["logits"].max_rel == pytest.approx(0.5 * abs(logits).max() / largest)
    assert "cams" not in found.outputs


def test_a_cam_that_is_not_a_number_is_no_jump(parity_run, jumps):
    jumps.add(parity_run.reference(0))
    want = parity_run.reference(0).outputs(module.torch.from_numpy(IDS))
    parity_run.add(0, {"cams": want["cams"].numpy() * np.nan}, IDS)
    found = parity_run.report((1,))
    assert found.left_out == 0
    assert np.isnan(found.outputs["cams"].max_rel)


def test_empty_cams_are_counted(parity_run, jumps):
    with module.torch.no_grad():
        for value in parity_run.model.sigmoid_head.parameters():
            value.fill_(-1)
    run_all(parity_run, jumps, ())
    assert parity_run.report((1,)).empty == 5


class Kink(nn.Module):
    """A ReLU, or a smooth function, behind the target layer, at exactly zero for black."""

    def __init__(self, activation):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        self.lift = nn.Conv2d(4, 4, 1)
        self.activation = activation
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.activation(self.lift(self.conv(x))).mean((2, 3)))


@pytest.mark.parametrize(("activation", "jumps"), [(nn.ReLU(), True), (nn.Tanh(), False)])
def test_is_unstable(activation, jumps):
    module.torch.manual_seed(0)
    net = Kink(activation)
    preprocessing = Preprocessing(16, 16, mean=(0.2, 0.3, 0.4), std=(0.3, 0.3, 0.3))
    image = np.full((1, 16, 16, 3), 128, np.uint8)
    dual = DualBranch(net, "conv", input_size=16)
    with module.torch.no_grad():
        features = dual.features(module.torch.from_numpy(normalised(image, preprocessing)).float())
        # One channel's input is zero up to rounding, at every position.
        for head in (dual.softmax_head, dual.sigmoid_head):
            tensors = dict(head.named_parameters())
            weight = next(v for n, v in tensors.items() if "lift" in n and v.ndim == 4)
            bias = next(v for n, v in tensors.items() if "lift" in n and v.ndim == 1)
            bias[0] = -(weight[0, :, 0, 0] @ features[0, :, 0, 0])
    double = in_double(dual).eval()
    options = ExportOptions(method="gradcam", nwc=False, tolerance=TOLERANCE)
    ids = module.torch.tensor([[0]])
    reference = Reference(double, as_images(image, preprocessing)[0], options)
    assert is_unstable(reference, ids, logit_floors([reference])) is jumps


def test_two_classes_that_a_classifier_is_undecided_about(preprocessing):
    """Both logits of an image are near zero by chance: their rounding is no error."""
    module.torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    dual = DualBranch(net, input_size=(24, 32))
    run = ParityRun(dual, ExportOptions(tolerance=TOLERANCE), preprocessing)
    weight, bias = run.model.sigmoid_head.linear_weights()
    with module.torch.no_grad():
        pooled = run.model.features(as_images(run.images[:1], preprocessing)[0]).mean((2, 3))[0]
        weight[1] = -weight[0]
        bias[0], bias[1] = 1e-6 - weight[0] @ pooled, weight[0] @ pooled - 1e-6
    want = run.reference(0).outputs(module.torch.from_numpy(IDS % 2))
    logits = want["evidence_logits"].numpy()
    assert abs(logits).max() == pytest.approx(1e-6, rel=1e-3)
    run.add(0, {"evidence_logits": logits + 1e-8}, IDS % 2)
    assert run.worst["evidence_logits"].max_rel < TOLERANCE
    largest = max(abs(run.reference(index).sigmoid_logits).max().item() for index in range(5))
    run.add(0, {"evidence_logits": logits + 2 * TOLERANCE * largest}, IDS % 2)
    assert run.worst["evidence_logits"].max_rel == pytest.approx(2 * TOLERANCE, rel=1e-6)


def test_an_error_on_an_image_that_does_not_jump_counts(parity_run, jumps):
    add(parity_run, 0, 0)
    add(parity_run, 1, 1e-3)
    found = parity_run.report((1,))
    assert found.left_out == 0
    assert found.outputs["cams"].max_rel == pytest.approx(1e-3)
