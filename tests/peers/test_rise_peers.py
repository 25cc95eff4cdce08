"""RISE against the package openvino_xai, where definitions agree.

Its masks are enlarged by a cubic; with a linear one in its place they are ours, seed for seed.
"""

import numpy as np
import pytest
import torch

from sigcam.runtime.multipass.rise import random_masks
from tests.peers.test_multipass_peers import IDS, SIDE, Net, random_image, session_of, tensor_of
from tests.support.openvino_xai_peer import imported

OPTIONS = {"masks": 60, "cells": 4, "keep": 0.4, "seed": 5}


@pytest.fixture
def peer(monkeypatch):
    """openvino_xai's module with its black-box method, which enlarges linearly."""
    module = imported("methods.black_box.rise")
    monkeypatch.setattr(module.cv2, "INTER_CUBIC", module.cv2.INTER_LINEAR)
    return module


def theirs(peer, net, image, ids):
    """Their saliency maps by class id, of a network that PyTorch runs."""
    method = peer.RISE.__new__(peer.RISE)
    method.preprocess_fn = lambda data: data
    method.postprocess_fn = lambda output: output
    method.predictions = {}

    def probabilities(data, preprocess=True):
        with torch.no_grad():
            return net(torch.from_numpy(data).float()).softmax(1).numpy()

    method.model_forward = method.get_logits = probabilities
    return method.generate_saliency_map(
        tensor_of(image).numpy(),
        list(ids),
        num_masks=OPTIONS["masks"],
        num_cells=OPTIONS["cells"],
        prob=OPTIONS["keep"],
        seed=OPTIONS["seed"],
        scale_output=False,
    )


def test_masks_are_the_same_seed_for_seed(peer):
    random = np.random.default_rng(OPTIONS["seed"])
    ours = random_masks(SIDE, SIDE, OPTIONS["cells"], OPTIONS["keep"], OPTIONS["seed"])
    for _ in range(9):
        size = np.array((SIDE, SIDE))
        mask = peer.RISE._generate_mask(size, OPTIONS["cells"], OPTIONS["keep"], random)
        np.testing.assert_allclose(next(ours), mask, atol=1e-6)


@pytest.mark.parametrize("seed", range(2))
def test_maps_agree(peer, seed, capfd):
    net, image = Net(), random_image(seed)
    with session_of(net) as session:
        ours = session.explain(image, classes=IDS, method="rise", method_options=OPTIONS)
    found = theirs(peer, net, image, IDS)
    for class_id, one in zip(IDS, ours, strict=True):
        # They leave the sum as it is, we divide it by the masks and the share that they show.
        want = found[class_id] / (OPTIONS["masks"] * OPTIONS["keep"])
        np.testing.assert_allclose(one.cam, want, atol=1e-5 * want.max())
        assert one.valid
    capfd.readouterr()  # their bar
