"""Graphs of several nodes: shape computations, folding, names, and what depends on the batch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from sigcam.classifier.onnx.batch import plan_batch
from sigcam.classifier.onnx.reader import OnnxGraph
from sigcam.classifier.onnx.tensors import Owner, place, store
from sigcam.core.errors import ModelError


def graph(nodes, shape, opset=13, **stored):
    made = helper.make_graph(
        [helper.make_node(*n[:3], f"{n[0]}_{i}", **(n[3] if len(n) > 3 else {}))
         for i, n in enumerate(nodes)],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in stored.items()],
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def read(model):
    return OnnxGraph(model.graph, model.opset_import[0].version, "x", "y")


def check(model, x):
    expected = ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(read(model)(torch.from_numpy(x)).numpy(), expected, atol=1e-5)


ONE, TWO, MINUS = (np.array([n], np.int64) for n in (1, 2, -1))
FLATTENED = [
    ("Shape", ["x"], ["s"]), ("Gather", ["s", "zero"], ["b"]),
    ("Unsqueeze", ["b", "axis"], ["b1"]), ("Concat", ["b1", "minus"], ["t"], {"axis": 0}),
    ("Reshape", ["x", "t"], ["y"]),
]  # fmt: skip


def test_shape_computations_leave_the_batch_dynamic():
    model = graph(FLATTENED, ("b", 3, 4, 5), zero=np.array(0), axis=np.array([0]), minus=MINUS)
    check(model, np.random.default_rng(0).random((2, 3, 4, 5), np.float32))
    program = torch.export.export(
        read(model), (torch.randn(2, 3, 4, 5),),
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False,
    )  # fmt: skip
    assert program.module()(torch.randn(7, 3, 4, 5)).shape == (7, 60)


def test_sizes_that_are_computed_with():
    nodes = [
        ("Shape", ["x"], ["s"]), ("Slice", ["s", "two", "four"], ["hw"]),
        ("Mul", ["hw", "two"], ["hw2"]), ("Cast", ["hw2", ], ["f"], {"to": TensorProto.FLOAT}),
        ("Div", ["f", "three"], ["q"]), ("Floor", ["q"], ["w"]),
        ("Cast", ["w"], ["i"], {"to": TensorProto.INT64}),
        ("Concat", ["minus", "one", "i"], ["t"], {"axis": 0}),
        ("Slice", ["x", "zeros", "i", "axes"], ["cut"]), ("ReduceSum", ["cut"], ["n"]),
        ("ReduceProd", ["i"], ["p"], {"keepdims": 0}), ("Cast", ["p"], ["pf"], {"to": 1}),
        ("Div", ["n", "pf"], ["y"]),
    ]  # fmt: skip
    model = graph(nodes, (2, 3, 6, 9), two=TWO, four=np.array([4]), minus=MINUS, one=ONE,
                  three=np.array(3, np.float32), zeros=np.array([0, 0]),
                  axes=np.array([2, 3]))  # fmt: skip
    check(model, np.random.default_rng(0).random((2, 3, 6, 9), np.float32))


def test_range_and_constant_of_shape():
    nodes = [
        ("Shape", ["x"], ["s"], {}), ("Gather", ["s", "last"], ["w"]),
        ("Range", ["zero", "w", "step"], ["r"]), ("Cast", ["r"], ["rf"], {"to": 1}),
        ("ConstantOfShape", ["s"], ["c"],
         {"value": numpy_helper.from_array(np.array([0.5], np.float32))}),
        ("Mul", ["x", "rf"], ["m"]), ("Add", ["m", "c"], ["y"]),
    ]  # fmt: skip
    model = graph(nodes, (2, 4), last=np.array(1), zero=np.array(0), step=np.array(1))
    check(model, np.random.default_rng(0).random((2, 4), np.float32))


def test_integer_division_is_exact_and_cut_towards_zero():
    nodes = [("Shape", ["x"], ["s"]), ("Div", ["s", "n"], ["d"]), ("Cast", ["d"], ["y"], {"to": 1})]
    model = graph(nodes, (5, 7), n=np.array([-2, 2]))
    np.testing.assert_array_equal(np.asarray(read(model)(torch.zeros(5, 7)), float), [-2, 3])


def test_what_is_stored_is_a_parameter_a_buffer_or_known():
    nodes = [
        ("Pow", ["x", "two"], ["p"]), ("MatMul", ["p", "a.b.w"], ["m"]),
        ("Add", ["m", "forward"], ["n"]), ("Reshape", ["n", "t"], ["y"]),
    ]  # fmt: skip
    model = graph(nodes, ("b", 3), two=np.array(2, np.float32), t=np.array([-1, 4, 1]),
                  **{"a.b.w": np.ones((3, 4), np.float32),
                     "forward": np.ones(4, np.float32)})  # fmt: skip
    made = read(model)
    # A name that modules have themselves gets an underscore.
    assert {n for n, _ in made.named_parameters()} == {"a.b.w", "forward_"}
    assert {n for n, _ in made.named_buffers()} == {"two"}
    assert "a.b.w" in made.tensors
    assert "t" in made.known
    assert "t" not in made.tensors


def test_names_that_collide():
    root = Owner()
    assert [place(root, name, Owner()) for name in ("a", "a.b", "a", "a..c", "")] == [
        "a", "a.b", "a_", "a._.c", "_",
    ]  # fmt: skip
    assert store(root, "a.b", torch.ones(1), trained=True)[2] == "a.b_"
    assert store(root, "a.b_.c", torch.ones(1), trained=False)[2] == "a.b__.c"


def test_fresh_parameters_of_a_linear_layer_are_drawn_as_torch_draws_them():
    model = graph([("MatMul", ["x", "fc.w"], ["y"])], ("b", 400),
                  **{"fc.w": np.full((400, 50), 9, np.float32)})  # fmt: skip
    owner = read(model).get_submodule("fc")
    owner.reset_parameters()
    assert owner.w.abs().max() <= 1 / 20
    assert owner.w.std() == pytest.approx(1 / 20 / 3**0.5, rel=0.05)


def test_what_depends_on_a_batch_of_one_is_refused_by_its_name():
    # Channels and images in one axis, with the channels inside: no batch for one image.
    nodes = [("Transpose", ["x"], ["t"], {"perm": [1, 0]}), ("Softmax", ["t"], ["s"]),
             ("Add", ["s", "wide"], ["y"])]  # fmt: skip
    model = graph(nodes, (1, 4), wide=np.ones((4, 2), np.float32))
    with pytest.raises(ModelError, match=r"the node Add_2 \(Add\) must work for any number of"):
        plan_batch(read(model), (4,))


def test_a_target_that_the_image_decides_is_refused():
    nodes = [("Cast", ["x"], ["i"], {"to": 7}), ("Reshape", ["x", "i"], ["y"])]
    with pytest.raises(ModelError, match=r"Reshape_1 .* known without the image"):
        read(graph(nodes, (1,)))(torch.ones(1))


def check_batch(model, shape):
    """A graph for one image gives, for several together, what it gives for each alone."""
    made = read(model)
    plan_batch(made, shape)
    images = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    alone = [ReferenceEvaluator(model).run(None, {"x": image[None]})[0] for image in images]
    np.testing.assert_allclose(
        made(torch.from_numpy(images)).numpy(), np.concatenate(alone), atol=1e-5
    )


@pytest.mark.parametrize("between", ["Gemm", "MatMul", "Relu", "Split"])
@pytest.mark.parametrize("tokens_first", [True, False])
@pytest.mark.parametrize("target", [(1, 5, 1, 3, 4), (5, 1, 12), (5, 1, -1), (5, 1, 3, 4)])
def test_tokens_and_images_in_one_axis(between, tokens_first, target):
    """What ONNX Runtime makes of torch's attention: products as a Gemm between two Reshapes."""
    order = [1, 0, 2] if tokens_first else [0, 1, 2]
    target = target if tokens_first else [1, *(n for n in target if n != 1)]
    back = [target.index(1, len(target) - 3 if len(target) == 5 else 0)]
    back += [i for i in range(len(target)) if i != back[0]]
    inputs = {"Gemm": ["f", "w"], "MatMul": ["f", "w"], "Relu": ["f"], "Split": ["f", "halves"]}
    outputs = ["g", "rest"] if between == "Split" else ["g"]
    width = 24 if between == "Split" else 12
    nodes = [
        ("Transpose", ["x"], ["t"], {"perm": order}), ("Reshape", ["t", "flat"], ["f"]),
        (between, inputs[between], outputs, {"axis": 1} if between == "Split" else {}),
        ("Reshape", ["g", "target"], ["h"]), ("Transpose", ["h"], ["y"], {"perm": back}),
    ]  # fmt: skip
    w = np.random.default_rng(1).standard_normal((12, 12)).astype(np.float32)
    stored = {"flat": np.array([5, width]), "target": np.array(target), "w": w,
              "halves": np.array([12, 12])}  # fmt: skip
    used = {name for node in nodes for name in node[1]}
    stored = {n: v for n, v in stored.items() if n in used}
    check_batch(graph(nodes, (1, 5, width), **stored), (5, width))


def test_images_between_two_other_sizes_of_one_axis():
    nodes = [
        ("Transpose", ["x"], ["t"], {"perm": [1, 0, 2]}), ("Reshape", ["t", "all"], ["f"]),
        ("Softplus", ["f"], ["g"]), ("Reshape", ["g", "target"], ["h"]),
        ("Transpose", ["h"], ["y"], {"perm": [1, 0, 2]}),
    ]  # fmt: skip
    stored = {"all": np.array([20]), "target": np.array([5, 1, 4])}
    check_batch(graph(nodes, (1, 5, 4), **stored), (5, 4))
