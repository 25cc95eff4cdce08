"""What image processors of transformers' do, measured; the right values are written out here."""

from __future__ import annotations

import numpy as np
import pytest

from sigcam.classifier.zoo.processor import measure
from sigcam.core.errors import ModelError
from sigcam.core.spec import Preprocessing

transformers = pytest.importorskip("transformers")

HALF = (0.5, 0.5, 0.5)
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SQUARE = {"height": 64, "width": 64}


def measured(name, side=None, channels=3, **options):
    processor = getattr(transformers, name)(**options)

    def process(image):
        made = processor(images=image, return_tensors="np", input_data_format="channels_last")
        return made["pixel_values"][0]

    return measure(process, side, channels)


@pytest.mark.parametrize(
    ("name", "options", "want"),
    [
        ("ViTImageProcessor", {"size": SQUARE}, (64, 64, "stretch", None)),
        ("ViTImageProcessorPil", {"size": SQUARE}, (64, 64, "stretch", None)),
        ("ViTImageProcessor", {"size": {"height": 20, "width": 28}}, (20, 28, "stretch", None)),
        ("BeitImageProcessor", {"size": SQUARE}, (64, 64, "stretch", None)),
        ("PvtImageProcessor", {"size": SQUARE, "image_mean": HALF, "image_std": HALF},
         (64, 64, "stretch", None)),
        # below 384 the crop is a share of what is resized, from there on there is none
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}, (224, 224, "crop", 256)),
        ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 224}, "crop_pct": 0.95},
         (224, 224, "crop", 235)),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.9},
         (32, 32, "crop", 35)),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}, (384, 384, "stretch", None)),
        ("MobileNetV2ImageProcessor", {}, (224, 224, "crop", 256)),
        ("LevitImageProcessor", {"image_mean": HALF, "image_std": HALF}, (224, 224, "crop", 256)),
        ("BitImageProcessor",
         {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 24},
          "image_mean": HALF, "image_std": HALF}, (32, 24, "crop", 40)),
        ("CLIPImageProcessor",
         {"size": {"shortest_edge": 518}, "crop_size": {"height": 512, "width": 512},
          "image_mean": HALF, "image_std": HALF}, (512, 512, "crop", 518)),
    ],
)  # fmt: skip
def test_place(name, options, want) -> None:
    found = measured(name, **options)
    assert found.preprocessing == Preprocessing(*want, HALF, HALF)
    assert (found.reversed_channels, found.notes) == (False, ())


@pytest.mark.parametrize(
    ("name", "options", "mean", "std"),
    [
        ("ViTImageProcessor", IMAGENET, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("ViTImageProcessor", {"do_normalize": False}, (0, 0, 0), (1, 1, 1)),
        ("ViTImageProcessor", {"do_normalize": False, "do_rescale": False}, (0,) * 3,
         (1 / 255,) * 3),
        ("ViTImageProcessor", {"do_rescale": False, "image_mean": [127.5, 0, 0],
                               "image_std": [127.5, 255, 51]}, (0.5, 0, 0), (0.5, 1, 0.2)),
        ("ViTImageProcessor", {"rescale_factor": 1 / 127.5}, (0.25,) * 3, (0.25,) * 3),
        # (p / 127.5 - 1 - mean) / std, and once more divided by std
        ("EfficientNetImageProcessor",
         {"rescale_offset": True, "rescale_factor": 1 / 127.5, "image_mean": [0, 0, 0],
          "image_std": [0.4, 0.5, 0.6]}, HALF, (0.08, 0.125, 0.18)),
        ("EfficientNetImageProcessor", {"include_top": False, **IMAGENET}, (0.485, 0.456, 0.406),
         (0.229, 0.224, 0.225)),
    ],
)  # fmt: skip
def test_values(name, options, mean, std) -> None:
    found = measured(name, size=SQUARE, **options).preprocessing
    assert found.mean == pytest.approx(mean, abs=1e-6)
    assert found.std == pytest.approx(std, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "channels"),
    [*(("ViTImageProcessor", n) for n in (1, 2, 4, 13)), ("ViTImageProcessorPil", 1)],
)
def test_any_number_of_channels(name, channels) -> None:
    mean = tuple(round(0.1 + 0.05 * c, 2) for c in range(channels))
    std = tuple(round(0.2 + 0.05 * c, 2) for c in range(channels))
    found = measured(name, channels=channels, size=SQUARE, image_mean=mean, image_std=std)
    assert found.preprocessing.mean == pytest.approx(mean, abs=1e-6)
    assert found.preprocessing.std == pytest.approx(std, rel=1e-5)
    assert (found.preprocessing.rule, found.preprocessing.width) == ("stretch", 64)
    assert (found.reversed_channels, found.notes) == (False, ())


@pytest.mark.parametrize(
    ("name", "channels", "words"),
    [
        ("ViTImageProcessor", 1, "images of 1 channels, and its image processor fails on them"),
        ("ViTImageProcessor", 4, "images of 4 channels, and .* with 4 numbers each"),
        ("BitImageProcessor", 1, "makes 3 channels of them"),
        ("MobileViTImageProcessor", 4, "no linear function|mixes the channels"),
    ],
)
def test_other_channels_than_the_processor_s(name, channels, words) -> None:
    with pytest.raises(ModelError, match=words):
        measured(name, channels=channels)


def test_the_place_of_one_channel() -> None:
    options = {"size": {"shortest_edge": 32}, "crop_pct": 0.9}
    options |= {"image_mean": [0.5], "image_std": [0.5]}
    found = measured("ConvNextImageProcessor", channels=1, **options).preprocessing
    assert found == Preprocessing(32, 32, "crop", 35, (0.5,), (0.5,))


def test_channels_in_reverse() -> None:
    """That processor never normalises, whatever its configuration says."""
    options = {"size": {"shortest_edge": 72}, "crop_size": SQUARE, "do_normalize": True, **IMAGENET}
    found = measured("MobileViTImageProcessor", **options)
    assert found.reversed_channels
    assert found.preprocessing == Preprocessing(64, 64, "crop", 72, (0, 0, 0), (1, 1, 1))
    options["do_flip_channel_order"] = False
    assert not measured("MobileViTImageProcessor", **options).reversed_channels


def test_values_of_reversed_channels_are_those_of_the_images_channels() -> None:
    def process(image):
        blue_first = image[:40, :40, ::-1] / 255
        return ((blue_first - (0.1, 0.2, 0.3)) / (0.4, 0.5, 0.6)).transpose(2, 0, 1)

    found = measure(process, None)
    assert found.reversed_channels
    assert found.preprocessing.mean == (0.3, 0.2, 0.1)
    assert found.preprocessing.std == (0.6, 0.5, 0.4)


@pytest.mark.parametrize(
    ("name", "options", "want", "words"),
    [
        (
            "DeiTImageProcessor",
            {},
            ("crop", 256),
            "256x256 whatever their aspect, and cuts",
        ),
        ("BitImageProcessor", {"do_center_crop": False}, ("crop", 224), "cuts nothing off"),
        ("BitImageProcessor", {"do_resize": False}, ("crop", 224), "without resizing it"),
        ("ViTImageProcessor", {"do_resize": False}, ("crop", 48), "at their own size"),
        ("MobileViTImageProcessor", {}, ("stretch", None), "in a way of its own"),
    ],
)
def test_what_no_rule_can_say_is_told(name, options, want, words) -> None:
    found = measured(name, side=48, **options)
    assert (found.preprocessing.rule, found.preprocessing.resize) == want
    assert words in found.notes[0]


@pytest.mark.parametrize(
    ("process", "words"),
    [
        (lambda image: (image.astype(float) / 255) ** 2, "no linear function"),
        (lambda image: image * 0.0, "no linear function"),
        (lambda image: image.mean(axis=2, keepdims=True).repeat(3, axis=2), "mixes the channels"),
        (lambda image: image[..., [1, 0, 2]], "mixes the channels"),
    ],
)
def test_what_cannot_be_followed(process, words) -> None:
    with pytest.raises(ModelError, match=words):
        measure(lambda image: process(image)[:32, :32].transpose(2, 0, 1), None)


def test_letterbox_is_told() -> None:
    def process(image):
        side = max(image.shape[:2])
        made = np.zeros((side, side, 3), np.uint8)
        made[: image.shape[0], : image.shape[1]] = image
        step = side // 16
        return made[::step, ::step][:16, :16].transpose(2, 0, 1) / 255

    assert "in a way of its own" in measure(process, None).notes[0]
