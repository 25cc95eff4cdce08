"""What is redrawn, in which order, and that it happens to a copy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from sigcam.core.errors import ExportError, UsageError
from sigcam.export import ExportOptions
from sigcam.export.parity.reference import Reference
from sigcam.export.randomise import Cascade, grouped, layers_from_output, redraw


@pytest.fixture
def images():
    return np.random.default_rng(2).integers(0, 256, (3, 24, 32, 3), np.uint8)


def test_stages_go_from_the_output_to_the_input(dual):
    assert layers_from_output(dual.features) == ["conv2", "bn", "conv1"]
    stages = Cascade(dual, ExportOptions()).stages
    assert [stage.name for stage in stages] == ["head", "conv2", "bn", "conv1"]
    assert stages[0].layers == ("fc",)


def test_few_stages_hold_all_layers_of_many(dual):
    stages = Cascade(dual, ExportOptions(), max_stages=2).stages
    layers = [layer for stage in stages for layer in stage.layers]
    assert len(stages) == 3
    assert layers == ["fc", "conv2", "bn", "conv1"]


@pytest.mark.parametrize(
    ("layers", "most", "names"),
    [
        ([], 3, []),
        (["b.1", "b.0", "a.1", "a.0"], 4, ["b.1", "b.0", "a.1", "a.0"]),
        (["b.1", "b.0", "a.1", "a.0"], 3, ["b", "a"]),
        # All but the first are in one module: halving the blocks says more than that one.
        (["head", "b.2.x", "b.2.y", "b.1.x", "b.0.x"], 3, ["head", "b.2", "b.1 to 0"]),
        (["c", "b", "a"], 1, ["c to a"]),
    ],
)
def test_neighbours_are_put_together(layers, most, names):
    stages = grouped(layers, most)
    assert [stage.name for stage in stages] == names
    assert [layer for stage in stages for layer in stage.layers] == layers


def test_redrawing_moves_entries_and_keeps_them():
    matrix, scale = torch.arange(24.0).reshape(4, 6), torch.arange(7.0)
    shift, other = scale + 100, torch.arange(5.0)
    tensors = [matrix, scale, shift, other]
    before = [tensor.clone() for tensor in tensors]
    redraw(tensors, np.random.default_rng(0))
    for tensor, old in zip(tensors, before, strict=True):
        assert not torch.equal(tensor, old)
        assert torch.equal(tensor.flatten().sort().values, old.flatten().sort().values)
    assert torch.equal(shift - scale, torch.full((7,), 100.0))  # a layer's vectors together


def test_a_matrix_that_is_not_contiguous_is_redrawn_too():
    matrix = torch.arange(24.0).reshape(4, 6).T
    redraw([matrix], np.random.default_rng(0))
    assert not torch.equal(matrix, torch.arange(24.0).reshape(4, 6).T)


def test_the_model_of_the_caller_stays(dual, images):
    before = dual.weights_sha256(), dual.branch_sha256()
    for branch in ("softmax", "sigmoid"):
        list(Cascade(dual, ExportOptions(branch=branch)).run(images))
    assert (dual.weights_sha256(), dual.branch_sha256()) == before


def test_a_stage_loses_what_those_before_it_lost(dual, images):
    """After the last stage nothing but the sizes of the entries is left."""
    cascade = Cascade(dual, ExportOptions())
    tensors = cascade._dual.features.state_dict() | cascade._dual.sigmoid_head.named_tensors()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    changed = {}
    for name, _ in cascade.run(images):
        changed[name] = {n for n, t in tensors.items() if not torch.equal(t, before[n])}
    assert changed["intact"] == set()
    assert changed["head"] == {"fc.weight", "fc.bias"}
    assert changed["conv2"] == changed["head"] | {"conv2.weight", "conv2.bias"}
    assert changed["conv1"] == changed["conv2"] | {"conv1.weight", "conv1.bias"}


def test_only_the_head_of_the_weights_is_redrawn(dual, images):
    cascade = Cascade(dual, ExportOptions(branch="softmax"))
    list(cascade.run(images))
    assert cascade._dual.branch_sha256() == dual.branch_sha256()
    assert not torch.equal(
        cascade._dual.softmax_head.named_tensors()["fc.weight"],
        dual.softmax_head.named_tensors()["fc.weight"],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "options"),
    [
        ("toy", ExportOptions()),
        ("toy", ExportOptions(branch="centred", signed=True)),
        ("mlp", ExportOptions(method="gradcam", branch="softmax")),
        ("mlp", ExportOptions(method="layercam")),
        ("mlp", ExportOptions(method="finercam", nwc=False)),
    ],
)
def test_the_maps_are_those_of_the_redrawn_network(make, nets, images, net, options):
    """Against autograd at every stage: a graph that was made before would give the old map."""
    dual = make(nets[net])
    cascade = Cascade(dual, options)
    size = cascade.preprocessing
    mean, std = (torch.tensor(v).reshape(3, 1, 1).double() for v in (size.mean, size.std))
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255 - mean) / std
    ids = dual(pixels.float()).logits.argmax(1, keepdim=True)
    count = 0
    for name, cams in cascade.run(images, batch_size=2):
        model = copy.deepcopy(cascade._dual).double()
        wanted = Reference(model, pixels, options).outputs(ids)["cams"][:, 0]
        assert np.allclose(cams, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max())), name
        count += 1
    assert count == 5


def test_the_same_seed_redraws_the_same(dual, images):
    def last(seed):
        return list(Cascade(dual, ExportOptions(), seed=seed).run(images))[-1][1]

    assert np.array_equal(last(0), last(0))
    assert not np.array_equal(last(0), last(1))


def test_a_method_that_does_not_fit(make, nets):
    with pytest.raises(ExportError, match="use gradcam"):
        Cascade(make(nets["mlp"]), ExportOptions())


@pytest.mark.parametrize("given", [{"seed": -1}, {"max_stages": 0}])
def test_numbers_out_of_range(dual, given):
    with pytest.raises(UsageError, match="seed must be at least 0 and max_stages at least 1"):
        Cascade(dual, ExportOptions(), **given)
