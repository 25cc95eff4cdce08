"""The fidelity report: measured right, shown, and a refusal below the limits."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigcam.convert.quantize import QuantizeOptions, quantize_artifact
from sigcam.convert.quantize.fidelity import FidelityCheck
from sigcam.convert.quantize.images import choose, prepared
from sigcam.convert.quantize.source import read_source
from sigcam.core.artifact import read_spec
from sigcam.core.errors import FidelityError, SchemaError
from sigcam.core.spec import SCHEMA_VERSION, ClassSelection, Spec
from sigcam.images.boxes import Box
from sigcam.images.correlation import correlation
from sigcam.runtime.session import load
from tests.support.tiny import artifact_graph, seal_to, tiny_spec, write

pytestmark = pytest.mark.slow

LAX = {"min_agreement": 0.0, "min_correlation": -1.0}
FEW = {"calibration": 8, "held_out": 16, "threads": 1}


def silent(done, total):
    pass


def options(**changes):
    return QuantizeOptions(**{**FEW, **changes})


coordinates = st.integers(0, 12)


@given(*[st.tuples(coordinates, coordinates, st.integers(1, 9), st.integers(1, 9))] * 2)
def test_iou_counts_pixels(one, other):
    boxes = [Box(x, y, x + w, y + h) for x, y, w, h in (one, other)]
    drawn = []
    for box in boxes:
        canvas = np.zeros((30, 30), bool)
        canvas[box.y0 : box.y1, box.x0 : box.x1] = True
        drawn.append(canvas)
    want = (drawn[0] & drawn[1]).sum() / (drawn[0] | drawn[1]).sum()
    assert boxes[0].iou(boxes[1]) == pytest.approx(want)


def test_correlation_is_pearsons():
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 7, 7)).astype(np.float32)
    assert correlation(one, other) == pytest.approx(np.corrcoef(one.ravel(), other.ravel())[0, 1])
    assert correlation(one, 3 * one + 1) == pytest.approx(1)
    assert correlation(one, np.full_like(one, 2)) == 0


def tiny(folder, name, weights=None, **changes):
    spec = tiny_spec(**changes)
    more = {} if weights is None else {"weights": weights}
    return write(onnx, artifact_graph(onnx, spec, **more), folder / name, spec.to_json())


def compared(folder, images, weights, **changes):
    path = tiny(folder, "a.onnx", **changes)
    other = tiny(folder, "b.onnx", weights, **changes)
    chosen = choose(images, read_spec(path).preprocessing, 8, 16, 0, silent)
    check = FidelityCheck(path, read_spec(path), chosen.held_out, 1, silent)
    return path, other, chosen, check.compare(other, silent)


# Classes 0 to 2 have their own colour; the fourth likes red and dislikes blue.
OTHER = np.array([[1, 0, 0.3], [0.9, 1, 0], [0, 0.2, 1], [0.5, 0, -1]], np.float32)


@pytest.mark.parametrize("profile", ["fused", "split"])
@pytest.mark.parametrize("mode", ["input", "topk", "top1"])
def test_against_what_two_sessions_say(tmp_path, images, mode, profile):
    selection = ClassSelection(mode, 3 if mode == "topk" else 1)
    changes = {"classes": selection, "profile": profile}
    a, b, chosen, found = compared(tmp_path, images, OTHER, **changes)
    agreed, correlations, ious = [], [], []
    with load(a, "ort") as first, load(b, "ort") as second:
        for path in chosen.held_out:
            one = first.explain(path)[0]
            agreed.append(one.class_id == second.explain(path)[0].class_id)
            if mode == "input":
                answers = second.explain(path, classes=one.class_id)
            else:
                answers = second.explain(path, top_k=3 if mode == "topk" else 1)
            same = [answer for answer in answers if answer.class_id == one.class_id]
            if same:
                pair = np.corrcoef(one.cam.ravel(), same[0].cam.ravel())
                correlations.append(pair[0, 1])
                ious.append(one.boxes()[0].iou(same[0].boxes()[0]))
    assert 0 < np.mean(agreed) < 1  # the case is one of both kinds
    assert found.agreement == np.mean(agreed)
    assert found.compared == len(correlations)
    assert found.compared == {"input": 16, "top1": sum(agreed)}.get(mode, found.compared)
    assert found.mean_correlation == pytest.approx(np.mean(correlations), abs=1e-6)
    assert found.worst_correlation == pytest.approx(min(correlations), abs=1e-6)
    assert found.mean_box_iou == pytest.approx(np.mean(ious))


# Differences of colours, so that logits have both signs.
SIGNED = np.array([[1, -1, 0], [0, 1, -1], [-1, 0, 1], [1, 0, -1]], np.float32)


def test_several_classes_agree_where_all_are_the_same(tmp_path, images):
    changes = {"task": "multi-label", "classes": ClassSelection("topk", 4)}
    a = tiny(tmp_path, "a.onnx", SIGNED, **changes)
    moved = SIGNED + np.float32(0.35) * np.roll(SIGNED, 1, 0)
    b = tiny(tmp_path, "b.onnx", moved, **changes)
    spec = read_spec(a)
    chosen = choose(images, spec.preprocessing, 8, 16, 0, silent)
    found = FidelityCheck(a, spec, chosen.held_out, 1, silent).compare(b, silent)
    with load(a, "ort") as first, load(b, "ort") as second:
        sets = [
            [
                {one.class_id for one in session.explain(path, min_probability=0.5)}
                for session in (first, second)
            ]
            for path in chosen.held_out
        ]
        tops = [
            first.explain(path)[0].class_id == second.explain(path)[0].class_id
            for path in chosen.held_out
        ]
    assert found.agreement == np.mean([one == other for one, other in sets])
    assert found.agreement < np.mean(tops)  # more must be the same than the most probable class


def test_a_graph_is_equal_to_itself(tmp_path, images):
    *_, found = compared(tmp_path, images, None)
    assert (found.agreement, found.mean_box_iou) == (1, 1)
    assert found.worst_correlation == pytest.approx(1)


def test_it_is_written_shown_and_read_by_others(artifacts, images, tmp_path):
    source, out = artifacts(method="cam"), tmp_path / "new.onnx"
    lines = []
    spec, written = quantize_artifact(source, images, out, options(**LAX), say=lines.append)
    assert written == [out]
    assert read_spec(out) == spec
    fidelity = spec.fidelity
    assert (fidelity.precision, fidelity.calibration, fidelity.images) == ("int8", 8, 16)
    assert fidelity.kept_float == ()
    assert fidelity.mean_correlation > 0.98
    assert f"{fidelity.agreement:.1%} of 16 images agree" in lines[-1]
    before = read_spec(source)
    assert before.fidelity is None
    assert before.parity == spec.parity
    # A reader of the same schema version that doesn't know the field: it is an unknown key.
    text = json.loads(spec.to_json())
    assert text["schema_version"] == SCHEMA_VERSION
    text["unheard of"] = text.pop("fidelity")
    assert Spec.from_json(json.dumps(text)) == before
    text["fidelity"] = {"precision": "int8"}
    with pytest.raises(SchemaError, match="missing or wrong field"):
        Spec.from_json(json.dumps(text))


def spoiled(path, out):
    """One pointwise layer's inputs get a channel 3,000 times as large, which it ignores."""
    model = onnx.load(str(path))
    stored = {t.name: t for t in model.graph.initializer}
    layers = [n for n in model.graph.node if n.op_type == "Conv"]
    depthwise = next(n for n in layers if stored[n.input[1]].dims[1] == 1)
    pointwise = next(n for n in layers if list(stored[n.input[1]].dims[2:]) == [1, 1])
    clip = next(n for n in model.graph.node if depthwise.output[0] in n.input)
    clip.op_type = "Relu"
    del clip.input[1:]
    for name, index, factor in (
        (depthwise.input[1], np.s_[0], 0), (depthwise.input[2], np.s_[0], 0),
        (pointwise.input[1], np.s_[:, 0], 0),
    ):  # fmt: skip
        values = onnx.numpy_helper.to_array(stored[name]).copy()
        values[index] *= factor
        if name == depthwise.input[2]:
            values[0] = 3000
        stored[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    seal_to(model, out)
    return out, pointwise.name, depthwise.name


def test_the_layer_with_the_largest_error_is_found_and_kept_in_float32(artifacts, images, tmp_path):
    bad, layer, maker = spoiled(artifacts(method="cam"), tmp_path / "bad.onnx")
    out, lines = tmp_path / "new.onnx", []
    limits = {"min_agreement": 0.5, "min_correlation": 0.98}
    with pytest.raises(
        FidelityError, match=rf"rounding moves their output most are {layer} \("
    ) as error:
        quantize_artifact(bad, images, out, options(rounds=0, **limits))
    assert "mean correlation of 0.98, but reaches" in str(error.value)
    assert list(tmp_path.iterdir()) == [bad]
    spec, _ = quantize_artifact(bad, images, out, options(**limits), say=lines.append)
    assert spec.fidelity.kept_float == (layer, maker)
    assert spec.fidelity.mean_correlation > 0.98
    assert any(line.startswith(f"round 1: keeping {layer}") for line in lines)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_in_16_bits(artifacts, images, tmp_path, precision):
    source, out = artifacts(method="gradcam++", mlp=True), tmp_path / "half.onnx"
    spec, _ = quantize_artifact(source, images, out, options(precision=precision, **LAX))
    assert spec.fidelity.calibration == 0
    assert spec.fidelity.mean_correlation > 0.9999
    big = [t for t in read_source(source).model.graph.initializer if np.prod(t.dims) >= 256]
    model = onnx.load(str(out))
    stored = {t.name: t for t in model.graph.initializer}
    casts = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Cast"}
    # Round to nearest even, done on the bits of a float32 for bfloat16.
    for tensor in big:
        exact = onnx.numpy_helper.to_array(tensor)
        if precision == "fp16":
            want = exact.astype(np.float16).tobytes()
        else:
            bits = exact.view(np.uint32).astype(np.uint64)
            want = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()
        assert stored[casts[tensor.name]].raw_data == want
    assert sum(len(stored[casts[t.name]].raw_data) for t in big) * 2 == sum(
        len(t.raw_data) for t in big
    )


def test_what_16_bits_cannot_hold_stays(artifacts, images, tmp_path):
    model = onnx.load(str(artifacts(method="gradcam++", mlp=True)))
    tensor = next(t for t in model.graph.initializer if np.prod(t.dims) >= 256)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] = 1e5
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    path = tmp_path / "large.onnx"
    seal_to(model, path)
    kept = {
        precision: quantize_artifact(
            path, images, tmp_path / f"{precision}.onnx", options(precision=precision, **LAX)
        )[0].fidelity.kept_float
        for precision in ("fp16", "bf16")
    }
    assert kept == {"fp16": (tensor.name,), "bf16": ()}


def test_the_same_seed_gives_the_same_file(artifacts, images, tmp_path):
    source = artifacts(method="cam")
    for name in ("a", "b"):
        quantize_artifact(source, images, tmp_path / f"{name}.onnx", options(**LAX))
    first, second = ((tmp_path / f"{name}.onnx").read_bytes() for name in ("a", "b"))
    assert first == second


def test_inputs_are_made_as_a_session_makes_them(artifacts, images):
    path = artifacts(method="cam")
    image = sorted(images.iterdir())[0]
    tensor, _ = prepared(image, read_spec(path).preprocessing)
    with load(path, "ort") as session:
        seen = session._read(image).tensor
    np.testing.assert_array_equal(tensor, seen)
