"""Small ONNX graphs, made by hand, whose outputs are known without running them.

The features are the image averaged to 7 x 7 colours in 0..1. The logits are either
weighted means of these ("linear": the sigmoid branch has the same weights), or come from
two different perceptrons with one hidden layer ("mlp").
"""

import contextlib
import hashlib
import io
import re
from dataclasses import replace

import numpy as np

from sigcam.core.artifact import read_spec, spec_of
from sigcam.core.digest import ZEROS, seal
from sigcam.core.errors import ArtifactError
from sigcam.core.spec import (
    ClassSelection,
    Preprocessing,
    Source,
    Spec,
)

GRID = 7
# Classes look at red, green, blue; the fourth likes red and dislikes blue.
WEIGHTS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, -1]], np.float32)
NAMES = ("red", "green", "blue", "Warm")

_RNG = np.random.default_rng(7)
MLP = {
    branch: [_RNG.normal(0, 2, shape).astype(np.float32) for shape in ((3, 5), (5,), (5, 4), (4,))]
    for branch in ("softmax", "sigmoid")
}


def tiny_spec(**changes):
    spec = Spec(
        method="cam",
        branch="sigmoid",
        nwc=True,
        target_layers=("pool",),
        profile="fused",
        classes=ClassSelection("input"),
        preprocessing=Preprocessing(height=56, width=56, resize=64),
        num_classes=4,
        feature_shapes=((3, GRID, GRID),),
        source=Source(architecture="tiny", weights_sha256="0" * 64),
        class_names=NAMES,
    )
    return replace(spec, **changes)


def features_of(image):
    """[3, 7, 7] of an image in 0..1, [3, 56, 56]."""
    return image.reshape(3, GRID, 8, GRID, 8).mean((2, 4))


def logits_of(features, head, branch, weights=WEIGHTS):
    """[C] of features [3, 7, 7]."""
    pooled = features.mean((1, 2))
    if head == "linear":
        return weights @ pooled
    first, bias, second, last = (array.astype(np.float64) for array in MLP[branch])
    return np.maximum(pooled @ first + bias, 0) @ second + last


def _chosen(helper, spec):
    """Nodes from `logits` (and `class_ids`) to `class_ids_out`."""
    node = helper.make_node
    if spec.classes.mode == "top1":
        return [node("ArgMax", ["logits"], ["class_ids_out"], axis=1, keepdims=1)]
    if spec.classes.mode == "topk":
        return [node("TopK", ["logits", "k"], ["top", "class_ids_out"], axis=1)]
    return [
        node("TopK", ["logits", "c"], ["top", "order"], axis=1),
        node("Neg", ["class_ids"], ["negative"]),
        node("Sub", ["negative", "one"], ["rank"]),
        node("Max", ["rank", "zero"], ["rank0"]),
        node("GatherElements", ["order", "rank0"], ["ranked"], axis=1),
        node("Less", ["class_ids", "zero"], ["by_rank"]),
        node("Where", ["by_rank", "ranked", "class_ids"], ["class_ids_out"]),
    ]


def _heads(helper, head):
    """Nodes from `features` to `logits` and `sigmoid_logits`."""
    node = helper.make_node
    pool = node("ReduceMean", ["features", "space"], ["pooled"], keepdims=0)
    if head == "linear":
        return [
            pool,
            node("MatMul", ["pooled", "columns"], ["logits"]),
            node("Identity", ["logits"], ["sigmoid_logits"]),
        ]
    nodes = [pool]
    for branch, out in (("softmax", "logits"), ("sigmoid", "sigmoid_logits")):
        first, bias, second, last = (f"{branch}{i}" for i in range(4))
        nodes += [
            node("Gemm", ["pooled", first, bias], [f"{branch} hidden"]),
            node("Relu", [f"{branch} hidden"], [f"{branch} open"]),
            node("Gemm", [f"{branch} open", second, last], [out]),
        ]
    return nodes


def _heatmaps(helper, spec, per_position):
    """Nodes from `features`, `sigmoid_logits` and `class_ids_out` to weights and CAMs."""
    node = helper.make_node
    nodes = [
        node("GatherElements", ["sigmoid_logits", "class_ids_out"], ["evidence_logits"], axis=1),
        node("Gather", ["rows", "class_ids_out"], ["w" if per_position else "cam_weights"], axis=0),
    ]
    if per_position:  # each position weighs by the feature there
        nodes += [
            node("Unsqueeze", ["w", "last two"], ["wide"]),
            node("Unsqueeze", ["features", "second"], ["F"]),
            node("Mul", ["wide", "F"], ["cam_weights"]),
        ]
    elif spec.profile == "fused" or spec.kind == "head":
        nodes += [
            node("Relu" if spec.nwc else "Identity", ["cam_weights"], ["used"]),
            node("Reshape", ["features", "flat"], ["F"]),
            node("MatMul", ["used", "F"], ["flat_cams"]),
            node("Reshape", ["flat_cams", "square"], ["signed"]),
            node("Relu", ["signed"], ["cams"]),
        ]
    return nodes


def _constants(spec, weights):
    constants = {
        "full": np.float32(255),
        "space": np.array([2, 3]),
        "rows": weights,
        "columns": np.ascontiguousarray(weights.T),
        "k": np.array([spec.classes.k]),
        "c": np.array([4]),
        "one": np.array(1),
        "zero": np.array(0),
        "second": np.array([1]),
        "last two": np.array([3, 4]),
        "flat": np.array([0, 3, GRID * GRID]),
        "square": np.array([0, -1, GRID, GRID]),
    }
    for branch, arrays in MLP.items():
        constants |= {f"{branch}{i}": array for i, array in enumerate(arrays)}
    return constants


def _finished(onnx, spec, weights, nodes, inputs, outputs):
    T, helper = onnx.TensorProto, onnx.helper
    types = {"uint8": T.UINT8, "float32": T.FLOAT, "int64": T.INT64}

    def values(described):
        return [
            helper.make_tensor_value_info(name, types[kind], shape)
            for name, (kind, shape) in described.items()
        ]

    used = {name for one in nodes for name in one.input}
    stored = [
        onnx.numpy_helper.from_array(np.asarray(value), name)
        for name, value in _constants(spec, weights).items()
        if name in used
    ]
    return helper.make_graph(nodes, "tiny", values(inputs), values(outputs), stored)


def artifact_graph(onnx, spec, weights=WEIGHTS, head="linear", emit=(), per_position=False):
    """The graph of an artifact with this spec.

    `emit` names further outputs: "features", "head_input", "sigmoid_logits".
    """
    node = onnx.helper.make_node
    size = spec.preprocessing.height
    cell = size // GRID
    if spec.preprocessing.layout == "uint8_nhwc":
        inputs = {"image": ("uint8", ["B", size, size, 3])}
        begin = [
            node("Cast", ["image"], ["raw"], to=onnx.TensorProto.FLOAT),
            node("Transpose", ["raw"], ["planes"], perm=[0, 3, 1, 2]),
            node("Div", ["planes", "full"], ["pixels"]),
        ]
    else:
        inputs = {"image": ("float32", ["B", 3, size, size])}
        begin = [node("Identity", ["image"], ["pixels"])]
    nodes = [
        *begin,
        node("AveragePool", ["pixels"], ["features"], kernel_shape=[cell] * 2, strides=[cell] * 2),
        *_heads(onnx.helper, head),
        *_chosen(onnx.helper, spec),
        *_heatmaps(onnx.helper, spec, per_position),
    ]
    square = ["B", 3, GRID, GRID]
    shapes = {
        "logits": ("float32", ["B", 4]),
        "class_ids_out": ("int64", ["B", "K"]),
        "evidence_logits": ("float32", ["B", "K"]),
        "cams": ("float32", ["B", "K", GRID, GRID]),
        "features": ("float32", square),
        "head_input": ("float32", square),
        "cam_weights": ("float32", ["B", "K", 3, GRID, GRID][: 5 if per_position else 3]),
        "sigmoid_logits": ("float32", ["B", 4]),
    }
    if "head_input" in emit:
        nodes.append(node("Identity", ["features"], ["head_input"]))
    wanted = ["logits", "class_ids_out", "evidence_logits"]
    wanted += ["cams"] if spec.profile == "fused" else ["features", "cam_weights"]
    wanted += [name for name in emit if name not in wanted]
    if spec.classes.mode == "input":
        inputs["class_ids"] = ("int64", ["B", "K"])
    outputs = {name: shapes[name] for name in wanted}
    return _finished(onnx, spec, weights, nodes, inputs, outputs)


def head_graph(onnx, spec, weights=WEIGHTS, head="linear"):
    """The head graph that belongs to `artifact_graph` of the same arguments."""
    node = onnx.helper.make_node
    given = spec.head_input
    scores = "sigmoid_logits" if spec.branch == "sigmoid" else "logits"
    nodes = [
        *([] if given == "features" else [node("Identity", [given], ["features"])]),
        *_heads(onnx.helper, head),
        node("Identity", ["class_ids"], ["class_ids_out"]),
        *_heatmaps(onnx.helper, spec, per_position=False),
        node("GatherElements", [scores, "class_ids"], ["scores"], axis=1),
    ]
    inputs = {given: ("float32", ["B", 3, GRID, GRID]), "class_ids": ("int64", ["B", "K"])}
    outputs = {
        "scores": ("float32", ["B", "K"]),
        "evidence_logits": ("float32", ["B", "K"]),
        "cam_weights": ("float32", ["B", "K", 3]),
        "cams": ("float32", ["B", "K", GRID, GRID]),
    }
    return _finished(onnx, spec, weights, nodes, inputs, outputs)


def write(onnx, graph, path, spec_text):
    """Checks a graph and writes it as a model file, with a spec unless `spec_text` is None."""
    opsets = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    entries = {} if spec_text is None else {"other": "x", "sigcam": spec_text}
    onnx.helper.set_model_props(model, entries)
    return seal_to(model, path)


def seal_to(model, path, head=None):
    """Writes a model, with the digest of its spec filled in if it has a spec at all.

    `head` is the file of the head graph that belongs to it from now on.
    """
    for entry in model.metadata_props:
        if entry.key == "sigcam":
            if head is not None:
                spec = replace(Spec.from_json(entry.value), head_digest=read_spec(head).digest)
                entry.value = spec.to_json()
            pattern, zeros = r'"digest": (null|"[0-9a-f]{64}")', f'"digest": "{ZEROS}"'
            entry.value = re.sub(pattern, zeros, entry.value, count=1)
    data = model.SerializeToString()
    with contextlib.suppress(ArtifactError):  # a spec that is wrong on purpose
        data = seal(data, spec_of(io.BytesIO(data), "model")[1])
    path.write_bytes(data)
    return path


def with_data_file(path):
    """Moves the weights of a model into a file beside it, sealed again; returns that file."""
    import onnx

    model = onnx.load(path)
    place = path.with_name(path.name + ".data")
    onnx.save(model, path, save_as_external_data=True, location=place.name, size_threshold=90)
    model = onnx.load(path, load_external_data=False)
    for entry in model.metadata_props:
        if entry.key == "sigcam":
            data = {place.name: hashlib.sha256(place.read_bytes()).hexdigest()}
            entry.value = replace(Spec.from_json(entry.value), external_data=data).to_json()
    seal_to(model, path)
    return place
