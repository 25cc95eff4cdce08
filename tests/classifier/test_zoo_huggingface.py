"""Image classifiers of transformers: loaded from folders made on the spot, exported, compared."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sigcam.classifier.build import build_classifier
from sigcam.classifier.zoo import load_model, takes_num_classes
from sigcam.core.errors import HubError, ModelError, UsageError

transformers = pytest.importorskip("transformers")

TRANSFORMER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
# Family: configuration, and the side of the input.
FAMILIES = {
    "ViT": (TRANSFORMER, 32),
    "DeiT": (TRANSFORMER, 32),
    "Beit": (TRANSFORMER, 32),
    "Dinov2": ({**TRANSFORMER, "mlp_ratio": 2}, 32),
    "Swin": ({"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1],
              "num_heads": [2, 2], "window_size": 4}, 32),
    "ResNet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
                "layer_type": "basic"}, 32),
    "ConvNext": ({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, 32),
    "MobileNetV2": ({"depth_multiplier": 0.25, "image_size": 64}, 64),
    "MobileViT": ({"image_size": 64, "hidden_sizes": [16, 20, 24], "num_attention_heads": 2,
                   "neck_hidden_sizes": [8, 8, 16, 16, 20, 24, 32]}, 64),
    "Pvt": ({"image_size": 64, "depths": [1] * 4, "hidden_sizes": [8, 16, 16, 16],
             "num_attention_heads": [1, 2, 2, 2], "sequence_reduction_ratios": [4, 2, 1, 1]}, 64),
    "EfficientNet": ({"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.1,
                      "hidden_dim": 320}, 64),
    "RegNet": ({"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4,
                "groups_width": 8}, 64),
}  # fmt: skip


def saved(folder: Path, family: str = "ViT", **options):
    """A tiny network with fresh parameters in a folder, with its image processor."""
    given, side = FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(**{**given, "num_labels": 5, **options})
    config.architectures = [f"{family}ForImageClassification"]
    torch.manual_seed(0)
    model = transformers.AutoModelForImageClassification.from_config(config).eval()
    with torch.no_grad():  # fresh ones are so small that everything would agree
        for value in model.parameters():
            fan_in = value[0].numel()
            value.add_(torch.randn(value.shape) * (fan_in**-0.5 if value.dim() > 1 else 0.1))
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 1.0
        n = config.num_channels
        model.train()(pixel_values=torch.rand(8, n, side, side))
        model.eval()
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(
        size={"height": side, "width": side}, image_mean=[0.4] * n, image_std=[0.2] * n
    ).save_pretrained(folder)
    return model


@pytest.fixture(scope="module", autouse=True)
def quiet():
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_logits(family, tmp_path) -> None:
    model = saved(tmp_path, family)
    loaded = load_model(f"hf/{tmp_path}")
    side = FAMILIES[family][1]
    found = loaded.preprocessing
    assert (found.height, found.width, found.rule) == (side, side, "stretch")
    assert (found.mean, found.std) == ((0.4,) * 3, (0.2,) * 3)
    assert (loaded.class_names, loaded.task, loaded.notes) == ((), None, ())
    image = torch.randn(2, 3, side, side)
    with torch.no_grad():
        want = model(pixel_values=image).logits
        assert want.std() > 0.1
        torch.testing.assert_close(loaded.model(image), want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", FAMILIES)
def test_exported(family, tmp_path) -> None:
    ort = pytest.importorskip("onnxruntime")
    from sigcam.export import ExportOptions, export_artifact

    model = saved(tmp_path, family)
    built = build_classifier(f"hf/{tmp_path}")
    floats = dataclasses.replace(built.preprocessing, layout="float32_nchw")
    options = ExportOptions(method="gradcam", branch="softmax", preprocessing=floats)
    spec = export_artifact(built, tmp_path / "m.onnx", options)
    assert min(spec.cam_shape) > 1
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    side = floats.height
    image = np.random.default_rng(0).standard_normal((2, 3, side, side), dtype=np.float32)
    with torch.no_grad():
        want = model(pixel_values=torch.from_numpy(image)).logits.numpy()
    got = session.run(["logits"], {"image": image})[0]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_logits_by_another_name(tmp_path) -> None:
    """PP-LCNet's classifier calls its logits last_hidden_state."""
    config = transformers.PPLCNetConfig(scale=0.25, num_labels=5)
    torch.manual_seed(0)
    model = transformers.PPLCNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    loaded, image = load_model(f"hf/{tmp_path}"), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want = model(pixel_values=image).last_hidden_state
        assert want.shape == (2, 5)
        torch.testing.assert_close(loaded.model(image), want)


def test_channels_in_reverse(tmp_path) -> None:
    """The network takes blue, green, red; what is loaded takes red, green, blue."""
    model = saved(tmp_path, "MobileViT")
    transformers.MobileViTImageProcessor(
        size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}
    ).save_pretrained(tmp_path)
    loaded = load_model(f"hf/{tmp_path}")
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        want = model(pixel_values=image[:, [2, 1, 0]]).logits
        torch.testing.assert_close(loaded.model(image), want)
        assert not torch.allclose(model(pixel_values=image).logits, want, atol=1e-3)


def test_names_and_task(tmp_path) -> None:
    names = {0: "cat", 1: "dog", 2: "owl"}
    options = {"num_labels": 3, "id2label": names, "label2id": {v: k for k, v in names.items()}}
    for kind, task in (
        ("multi_label_classification", "multi-label"),
        ("single_label_classification", "single-label"),
    ):
        saved(tmp_path / kind, problem_type=kind, **options)
        loaded = load_model(f"hf/{tmp_path / kind}")
        assert (loaded.class_names, loaded.task) == (("cat", "dog", "owl"), task)
    fresh = load_model(f"hf/{tmp_path / kind}", "random", num_classes=7)
    assert fresh.class_names == ()
    assert fresh.model(torch.rand(1, 3, 32, 32)).shape == (1, 7)


def test_which_weights(tmp_path) -> None:
    model = saved(tmp_path / "a")
    arch, x = f"hf/{tmp_path / 'a'}", torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        own = model(pixel_values=x).logits
        assert torch.equal(load_model(arch, "DEFAULT", 5).model(x), load_model(arch).model(x))
        torch.testing.assert_close(load_model(arch).model(x), own)
        fresh = load_model(arch, "random", seed=1).model(x)
        assert torch.equal(load_model(arch, "random", seed=1).model(x), fresh)
        assert not torch.allclose(fresh, own, atol=1e-3)
        tuned = {name: value * 1.5 for name, value in model.state_dict().items()}
        torch.save({"state_dict": tuned}, tmp_path / "tuned.bin")
        got = load_model(arch, tmp_path / "tuned.bin").model(x)
        model.load_state_dict(tuned)
        torch.testing.assert_close(got, model(pixel_values=x).logits)
    assert takes_num_classes(arch)
    with pytest.raises(UsageError, match="are for 5 classes, not 3"):
        load_model(arch, None, 3)
    with pytest.raises(UsageError, match="unknown weights of hf/"):
        load_model(arch, "IMAGENET1K_V1")


def test_the_types_of_the_file_do_not_matter(tmp_path) -> None:
    saved(tmp_path).half().save_pretrained(tmp_path)
    assert load_model(f"hf/{tmp_path}").model.model.dtype == torch.float32


def test_without_an_image_processor(tmp_path) -> None:
    saved(tmp_path, "Swin")
    (tmp_path / "preprocessor_config.json").unlink()
    loaded = load_model(f"hf/{tmp_path}")
    assert (loaded.preprocessing.height, loaded.preprocessing.mean) == (32, (0.5,) * 3)
    assert "no preprocessor_config.json" in loaded.notes[0]
    assert "by default; give --size" in loaded.notes[0]


def test_a_family_without_an_image_processor_of_its_own(tmp_path) -> None:
    transformers.HGNetV2Config().save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"no preprocessor_config\.json, and .* hgnet_v2 in no way"
    ):
        load_model(f"hf/{tmp_path}", "random")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"problem_type": "regression"}, "is a regression"),
        ({"model_type": "bert"}, "can't load .* as an image classifier"),
        ({"model_type": "nonsense"}, "can't load .* as an image classifier"),
    ],
)
def test_what_is_no_classifier_of_images(change, words, tmp_path) -> None:
    saved(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(ModelError, match=words):
        load_model(f"hf/{tmp_path}")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ViT", "ResNet", "Swin"])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_other_channels(family, channels, tmp_path) -> None:
    model = saved(tmp_path, family, num_channels=channels)
    built = build_classifier(f"hf/{tmp_path}")
    found = built.preprocessing
    assert (found.mean, found.std) == ((0.4,) * channels, (0.2,) * channels)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, channels), np.uint8)
    processor = transformers.ViTImageProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        pixels = processor(image, return_tensors="pt", input_data_format="channels_last")
        want = model(**pixels).logits
        prepared = (image / 255 - found.mean) / found.std
        got = built.dual(torch.tensor(prepared.transpose(2, 0, 1)[None], dtype=torch.float32))
    torch.testing.assert_close(got.logits, want, rtol=1e-4, atol=1e-5)


def test_another_number_of_channels_than_the_network_s(tmp_path) -> None:
    saved(tmp_path, num_channels=4)
    grey = {"mean": (0.5,), "std": (0.5,)}
    with pytest.raises(UsageError, match="takes images of 4 channels, got a mean and std of 1; gi"):
        build_classifier(f"hf/{tmp_path}", **grey)
    four = {"mean": (0.5,) * 4, "std": (0.5,) * 4}
    assert build_classifier(f"hf/{tmp_path}", **four).preprocessing.mean == (0.5,) * 4


def test_an_image_processor_for_other_channels(tmp_path) -> None:
    saved(tmp_path, num_channels=2)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"takes images of 2 channels, and its .* fails .*; save"):
        load_model(f"hf/{tmp_path}")
    processor = transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.1, 0.2], image_std=[0.3, 0.4]
    )
    processor.save_pretrained(tmp_path)
    assert load_model(f"hf/{tmp_path}").preprocessing.std == (0.3, 0.4)
    (tmp_path / "preprocessor_config.json").unlink()
    by_family = load_model(f"hf/{tmp_path}")
    assert by_family.preprocessing.mean == (0.5, 0.5)
    assert "no preprocessor_config.json" in by_family.notes[0]


def test_one_output_is_a_regression_unless_it_says_otherwise(tmp_path) -> None:
    saved(tmp_path, num_labels=1)
    with pytest.raises(ModelError, match=r"is a regression .*config\.json"):
        load_model(f"hf/{tmp_path}")


def test_a_head_that_was_never_trained(tmp_path) -> None:
    """transformers would make a random one, and only log it."""
    model = saved(tmp_path)
    model.vit.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no trained weights for classifier\.bias, classifier\.w"):
        load_model(f"hf/{tmp_path}")


def test_code_in_the_folder_is_not_run(tmp_path) -> None:
    saved(tmp_path)
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = tmp_path / "config.json"
    entry = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config",
             "AutoModelForImageClassification": "own.Model"}}  # fmt: skip
    config.write_text(json.dumps({**json.loads(config.read_text()), **entry}))
    with pytest.raises(ModelError, match="Python code of its own, which sigcam doesn't run"):
        load_model(f"hf/{tmp_path}")
    assert not ran.exists()


def test_folders_that_are_not_there(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("./none", "/none/at/all"):
        with pytest.raises(ModelError, match=f"there is no folder {name}"):
            load_model(f"hf/{name}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_model("hf/empty")
    saved(tmp_path / "mine@2")
    assert load_model("hf/./mine@2").architecture == "hf/./mine@2"
    assert load_model("hf/mine@2").model is not None


def test_names_on_the_hub(monkeypatch) -> None:
    asked = []

    def offline(name, **options):
        asked.append((name, options.get("revision"), options["trust_remote_code"]))
        raise OSError("can't load") from ConnectionError("no route to host")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    for arch in ("hf/google/vit", "hf/google/vit@v2"):
        with pytest.raises(HubError, match=r"the Hub can't be reached .* no copy of google/vit"):
            load_model(arch)
    assert asked == [("google/vit", None, False), ("google/vit", "v2", False)]


def test_transformers_is_an_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r'pip install "sigcam\[hf\]"'):
        load_model("hf/google/vit")
