"""ReciproCAM in the graph: the score of every position alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sigcam.classifier.layout import Layout
from sigcam.core.errors import UsageError
from sigcam.core.spec import ClassSelection
from sigcam.export import METHODS, ExportOptions, export_artifact
from sigcam.export.masked_scores import position_masks
from sigcam.export.modules import CamGraph
from sigcam.export.parity.inputs import as_images, sample_images
from sigcam.runtime.session import load
from tests.export.test_artifact_matches_oracle import head_logits, images_of, normalised
from tests.export.test_artifact_matches_oracle import run as run_artifact
from tests.export.test_target_layers import (
    CASES,
    NAMED,
    PREPROCESSING,
    ChannelsLast,
    Residual,
    Transformer,
    made,
    run,
)
from tests.support import oracle as reference

IDS = np.tile(np.array([[3, 0]]), (5, 1))


def options_of(**options):
    chosen = {"branch": "softmax", "has_sigmoid": False, "preprocessing": PREPROCESSING, **options}
    return ExportOptions(method="reciprocam", **chosen)


def cams_of(dual, ids=IDS, **options):
    """CAMs by the modules that are exported, in PyTorch."""
    graph = CamGraph(dual, options_of(**options))
    images = torch.cat(as_images(sample_images(PREPROCESSING), PREPROCESSING)).float()
    with torch.no_grad():
        values = graph.weight_graph.run(graph.cut.front(images))
        return graph.explain(values, torch.from_numpy(ids))["cams"].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("net", ["toy", "mlp"])
@pytest.mark.parametrize("branch", ["sigmoid", "softmax", "centred"])
def test_the_artifact_equals_the_definition(tmp_path, make, nets, preprocessing, net, branch):
    dual = make(nets[net])
    path = tmp_path / "m.onnx"
    options = options_of(
        branch=branch,
        has_sigmoid=True,
        preprocessing=preprocessing,
        classes=ClassSelection("topk", 3),
        head_graph=net == "mlp",
    )
    spec = export_artifact(dual, path, options)
    assert (spec.method, spec.nwc, spec.signed) == ("reciprocam", False, False)
    head = dual.sigmoid_head if branch == "sigmoid" else dual.softmax_head
    tensors = {k.removeprefix("fc."): v.numpy() for k, v in head.named_tensors().items()}

    for batch in (1, 3):
        images = images_of(preprocessing, batch)
        got = run_artifact(path, images)
        ids = got["class_ids_out"]

        def score(F, ids=ids):
            logits = head_logits(reference.global_average_pool(F), tensors)
            logits = logits - (logits.mean(1, keepdims=True) if branch == "centred" else 0)
            return np.take_along_axis(logits, ids, 1)

        with torch.no_grad():
            F = dual.features(torch.from_numpy(normalised(images, preprocessing)).float())
        want = reference.reciprocam(F.numpy(), score)
        assert want.max() > 0
        np.testing.assert_allclose(got["cams"], want, atol=1e-4 * want.max())


def by_hooks(net, layer, layout, ids):
    """Scores of every mask, by a hook on the user's own module that hides the rest."""
    torch.manual_seed(5)
    model = net().double().eval()
    images = torch.cat(as_images(sample_images(PREPROCESSING), PREPROCESSING))
    _, h, w = layout.shape
    masks, out = [], np.zeros((*ids.shape, h, w))
    model.get_submodule(layer).register_forward_hook(lambda m, i, o: o * masks[-1])
    for i, j in np.ndindex(h, w):
        seen = np.zeros((h, w))
        if layout.kind == "tokens":
            padded = np.zeros((h + 2, w + 2))
            padded[i : i + 3, j : j + 3] = np.outer([1, 2, 1], [1, 2, 1]) / 16
            seen = padded[1:-1, 1:-1]
        else:
            seen[i, j] = 1
        mask = torch.from_numpy(seen)
        shapes = {"nchw": (1, h, w), "nhwc": (h, w, 1), "tokens": (h * w, 1)}
        mask = mask.reshape(shapes[layout.kind])
        if layout.kind == "tokens":
            mask = torch.cat([torch.ones(layout.prefix, 1), mask])
        masks.append(mask)
        with torch.no_grad():
            out[:, :, i, j] = model(images).gather(1, torch.from_numpy(ids)).numpy()
    return out


@pytest.mark.parametrize("case", CASES)
def test_equals_hooks_on_the_model(case):
    net, layer, _ = CASES[case]
    dual = made(net, [layer] if case.startswith(NAMED) else [])
    assert [target.layer for target in dual.targets] == [layer]
    scores = by_hooks(net, layer, dual.targets[0].layout, IDS)
    want = scores - scores.min((2, 3), keepdims=True)
    assert want.max() > 0
    # What differs between positions may be little of the score, which float32 rounds.
    atol = 1e-4 * want.max() + 1e-6 * np.abs(scores).max()
    np.testing.assert_allclose(cams_of(dual), want, atol=atol)


@pytest.mark.parametrize("net", [Residual, ChannelsLast])
def test_the_closed_form_equals_the_masks(net, monkeypatch):
    dual = made(net)
    short = CamGraph(dual, options_of())
    assert short.weight_graph.closed_form
    got = cams_of(dual)
    original = CamGraph.__init__.__globals__["ScoreHead"]

    class Unpooled(original):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.pooled = False

    monkeypatch.setitem(CamGraph.__init__.__globals__, "ScoreHead", Unpooled)
    assert not CamGraph(dual, options_of()).weight_graph.closed_form
    np.testing.assert_allclose(got, cams_of(dual), atol=1e-5 * got.max())


@pytest.mark.slow
def test_a_transformer_and_its_head_graph(tmp_path):
    pytest.importorskip("openvino")
    path = tmp_path / "m.onnx"
    dual = made(Transformer)
    spec = export_artifact(dual, path, options_of(classes=ClassSelection("input"), head_graph=True))
    assert spec.parity.left_out == 0
    want = cams_of(dual)
    np.testing.assert_allclose(run(path, ["cams"], IDS)["cams"], want, atol=1e-4 * want.max())
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    first = None
    for backend in ("ort", "openvino"):
        with load(path, backend) as session:
            asked = session.explain(image, classes=[5, 2])
            further = asked[0].for_classes([5, 2])
        first = first or asked
        for one, other, of_ort in zip(asked, further, first, strict=True):
            assert one.valid
            assert one.method == "reciprocam"
            atol = 1e-4 * of_ort.cam.max()
            np.testing.assert_allclose(one.cam, other.cam, atol=atol)
            np.testing.assert_allclose(one.cam, of_ort.cam, atol=atol)


def test_several_layers_are_averaged():
    layers = ["down", "two"]
    alone = [cams_of(made(Residual, [layer])) for layer in layers]
    want = np.zeros(alone[0].shape)
    for b, k in np.ndindex(*IDS.shape):
        for cams in alone:
            want[b, k] += reference.min_max(cams[b, k])[0] / 2
    np.testing.assert_allclose(cams_of(made(Residual, layers)), want, atol=1e-5)


def test_equal_scores_make_no_map():
    dual = made(Residual)
    with torch.no_grad():
        weight = dict(dual.softmax_head.named_parameters())
        for value in weight.values():
            value.zero_()
    assert not cams_of(dual).any()


def test_masks_of_tokens_by_hand():
    masks = position_masks(Layout("tokens", (5, 2, 3), 1)).reshape(6, 2, 3)
    want = torch.tensor([[2.0, 4, 2], [1, 2, 1]]) / 16  # around the second of the first row
    torch.testing.assert_close(masks[1], want)
    assert torch.equal(position_masks(Layout("nhwc", (5, 2, 3))), torch.eye(6))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"profile": "split"}, "reciprocam has none.*use the profile fused"),
        ({"nwc": True}, "reciprocam has no CAM weights.*leave nwc out"),
        ({"signed": True}, "its CAM no sign; leave signed out"),
    ],
)
def test_what_it_cannot_have(options, says):
    with pytest.raises(UsageError, match=says):
        options_of(**options)
    assert not METHODS["reciprocam"].gives_weights
