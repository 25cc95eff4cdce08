"""Artifacts whose CAMs are known without running them, and images with boxes and masks."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sigcam.core.spec import ClassSelection, Preprocessing
from tests.support.tiny import WEIGHTS, artifact_graph, tiny_spec, write

CLASSES = ("red", "green", "blue", "warm")
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


@pytest.fixture(scope="session")
def artifact(tmp_path_factory):
    """A function from options and changes of the spec to an artifact's path.

    Its CAM of class 0, 1, 2 is how red, green, blue the image is.
    """
    onnx = pytest.importorskip("onnx")

    def make(
        mode="input",
        rule="stretch",
        name="model.onnx",
        class_names=CLASSES,
        weights=WEIGHTS,
        **changes,
    ):
        resize = 64 if rule == "crop" else None
        spec = tiny_spec(
            classes=ClassSelection(mode), class_names=class_names,
            preprocessing=Preprocessing(56, 56, rule=rule, resize=resize), **changes,
        )  # fmt: skip
        path = tmp_path_factory.mktemp("artifact") / name
        return write(onnx, artifact_graph(onnx, spec, weights), path, spec.to_json())

    return make


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """A wsol data set: 12 dim images with a rectangle in its class's colour, box and mask."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(3)
    lines = {name: [] for name in ("image_ids", "class_labels", "image_sizes", "localization")}
    masks = []
    for name in ("images", "masks", "metadata"):
        (folder / name).mkdir()
    for index in range(12):
        label = index % 3
        width, height = (int(size) for size in rng.integers(60, 140, 2))
        x0, y0 = (int(rng.integers(0, size // 2)) for size in (width, height))
        x1, y1 = int(rng.integers(x0 + 20, width)), int(rng.integers(y0 + 20, height))
        image = rng.integers(0, 40, (height, width, 3), np.uint8)
        image[y0 : y1 + 1, x0 : x1 + 1] = COLOURS[label]
        mask = np.zeros((height, width), np.uint8)
        mask[y0 : y1 + 1, x0 : x1 + 1] = 255
        name = f"images/{index}.png"
        assert cv2.imwrite(str(folder / name), image[..., ::-1])
        assert cv2.imwrite(str(folder / f"masks/{index}.png"), mask)
        lines["image_ids"].append(name)
        lines["class_labels"].append(f"{name},{label}")
        lines["image_sizes"].append(f"{name},{width},{height}")
        lines["localization"].append(f"{name},{x0},{y0},{x1},{y1}")
        masks.append(f"{name},masks/{index}.png,")
    for name, content in {**lines, "masks": masks}.items():
        (folder / "metadata" / f"{name}.txt").write_text("".join(f"{one}\n" for one in content))
    return folder
