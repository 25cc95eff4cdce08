"""The demo's network on real images with known classes; needs the folder ../shared."""

from __future__ import annotations

import numpy as np
import pytest

from sigcam.data import open_dataset
from sigcam.demo.network import load_network
from sigcam.export import ExportOptions, export_artifact
from sigcam.runtime.session import load
from tests.support.paths import DATA

pytestmark = [
    pytest.mark.slow,
    pytest.mark.shared,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the images in {DATA.parent.name}/data"),
]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    network = load_network()
    path = tmp_path_factory.mktemp("real") / "model.onnx"
    export_artifact(
        network.dual,
        path,
        ExportOptions(preprocessing=network.preprocessing, class_names=network.class_names),
    )
    with load(path) as session:
        yield session


def test_the_exported_network_recognises_imagenet_images(session):
    chosen = open_dataset(DATA / "imagenet_samples").samples[::10]
    found = session.stream(sample.path for sample in chosen)
    right = [one[0].class_id == sample.label for sample, one in zip(chosen, found, strict=True)]
    assert len(right) == 100
    # 87% with PyTorch and Pillow's resize on a quarter of them; three deviations below.
    assert np.mean(right) > 0.77


def test_pet_maps_are_valid_and_their_boxes_meet_the_animal(session):
    hits = []
    for sample in open_dataset(DATA / "pets").samples[::10]:
        best = session.explain(sample.path)[0]
        assert best.valid
        y, x = np.unravel_index(best.heatmap.argmax(), best.heatmap.shape)
        [[x0, y0, x1, y1]] = sample.boxes
        hits.append(x0 <= x <= x1 and y0 <= y <= y1)
    assert len(hits) == 30
    assert np.mean(hits) > 0.8  # the strongest point lies on the animal
