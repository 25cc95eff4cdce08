"""Each layer's own rounding error: biases take back its mean, and layers are ranked by it."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sigcam.convert.quantize.calibrate import calibrate, open_unfused
from sigcam.convert.quantize.images import feeds
from sigcam.convert.quantize.int8 import to_int8
from sigcam.convert.quantize.layer_errors import correct_biases, rank_layers
from sigcam.convert.quantize.selection import select
from sigcam.convert.quantize.source import read_source

pytestmark = pytest.mark.slow

COUNT = 12
CLASS = {"class_ids": np.zeros((1, 1), np.int64)}


def silent(*_):
    pass


@pytest.fixture(params=[False, True], ids=["linear", "mlp"])
def case(request, artifacts, images):
    source = read_source(
        artifacts(method="gradcam++" if request.param else "cam", mlp=request.param)
    )
    selection = select(source)
    paths = sorted(images.iterdir())[:COUNT]

    def given():
        return feeds(paths, source.spec.preprocessing)

    ranges = calibrate(
        source, selection, given(), COUNT, method="minmax", threads=1, report=silent
    )  # fmt: skip
    return source, selection, given, to_int8(source, selection, ranges)


def bias_of(model, name):
    return next(node for node in model.graph.node if node.name == name).input[2:3]


def test_each_channel_gets_the_mean_of_float32(case):
    """The correction itself, from the definition: bias - E[rounded - float32]."""
    source, selection, given, converted = case
    corrected = correct_biases(
        source, converted, selection, given(), COUNT, threads=1, report=silent
    )
    onnx.checker.check_model(corrected, full_check=True)
    before = {tensor.name: tensor for tensor in converted.graph.initializer}
    after = {tensor.name: tensor for tensor in corrected.graph.initializer}
    x = outputs_of(source, selection, given)
    for name in selection.layers:
        old, new = (
            numpy_helper.to_array(stored[bias_of(model, name)[0]])
            for stored, model in ((before, converted), (after, corrected))
        )
        rounded = rounded_layer(converted, name, x[name][0])
        float32 = x[name][1]
        axes = (0, 2, 3) if rounded[0].ndim == 4 else (0,)
        error = np.mean([(r - f).mean(axes) for r, f in zip(rounded, float32, strict=True)], 0)
        np.testing.assert_allclose(new, old - error, atol=1e-5 * max(1, np.abs(old).max()))


def outputs_of(source, selection, given):
    """Each layer's float32 inputs and outputs, a list over the images each."""
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    nodes = {node.name: node for node in model.graph.node}
    names = sorted({n for name in selection.layers for n in ends(nodes[name])})
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names
    )
    session = open_unfused(model.SerializeToString(), 1)
    runs = [dict(zip(names, session.run(names, f | CLASS), strict=True)) for f in given()]
    return {
        name: tuple([run[end] for run in runs] for end in ends(nodes[name]))
        for name in selection.layers
    }


def ends(node):
    return node.input[0], node.output[0]


def rounded_layer(model, name, inputs, *, of_input=True, weights=None):
    """The converted layer alone on float32 inputs: quantise, dequantise, multiply.

    Without `of_input` the input isn't rounded; `weights` are used instead of the rounded ones.
    """
    made_by = {output: node for node in model.graph.node for output in node.output}
    layer = copy.deepcopy(next(node for node in model.graph.node if node.name == name))
    stored, nodes = list(model.graph.initializer), []
    back = made_by[layer.input[0]]
    if of_input:
        there = copy.deepcopy(made_by[back.input[0]])
        there.input[0] = "x"
        nodes += [there, back]
    else:
        layer.input[0] = "x"
    if weights is None:
        nodes.append(made_by[layer.input[1]])
    else:
        stored.append(numpy_helper.from_array(weights, "float32 weights"))
        layer.input[1] = "float32 weights"
    graph = onnx.helper.make_graph(
        [*nodes, layer], "one",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
        [onnx.helper.make_tensor_value_info(layer.output[0], onnx.TensorProto.FLOAT, None)],
        stored,
    )  # fmt: skip
    alone = onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    session = open_unfused(alone.SerializeToString(), 1)
    return [session.run(None, {"x": x})[0] for x in inputs]


def test_each_layer_is_ranked_by_its_own_error(case):
    """The errors, from the definition: ||rounded - float32|| / ||float32|| for each channel."""
    source, selection, given, converted = case
    ranking = rank_layers(
        source, converted, selection, given(), COUNT, threads=1, report=silent
    )  # fmt: skip
    assert [one.layer for one in ranking] != list(selection.layers)
    assert sorted(one.layer for one in ranking) == sorted(selection.layers)
    assert [one.error for one in ranking] == sorted((one.error for one in ranking), reverse=True)
    stored = {t.name: numpy_helper.to_array(t) for t in source.model.graph.initializer}
    nodes = {node.name: node for node in source.model.graph.node}
    x = outputs_of(source, selection, given)
    for one in ranking:
        inputs, float32 = (np.concatenate(ends) for ends in x[one.layer])
        axes = (0, 2, 3) if float32.ndim == 4 else (0,)
        weights = stored[nodes[one.layer].input[1]]
        for error, changes in (
            (one.by_input, {"weights": weights}),
            (one.by_weight, {"of_input": False}),
        ):
            [rounded] = rounded_layer(converted, one.layer, [inputs], **changes)
            squares = ((rounded - float32) ** 2).sum(axes), (float32**2).sum(axes)
            alive = squares[1] > 0
            want = np.sqrt(squares[0][alive] / squares[1][alive]).mean()
            assert error == pytest.approx(want, rel=1e-3)


def test_logits_come_nearer_to_float32(case):
    source, selection, given, converted = case
    corrected = correct_biases(
        source, converted, selection, given(), COUNT, threads=1, report=silent
    )
    wanted, before, after = (logits(one, given) for one in (source.model, converted, corrected))
    assert np.abs(after - wanted).mean() < np.abs(before - wanted).mean()


def logits(model, given):
    session = open_unfused(model.SerializeToString(), 1)
    return np.concatenate([session.run(["logits"], f | CLASS)[0] for f in given()])
