"""Images of any number of channels and any size, from training to the overlay, by the commands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

import sigcam
from sigcam.cli import main
from sigcam.core.artifact import read_spec
from sigcam.core.errors import ImageError

pytestmark = pytest.mark.slow

SIZE = (40, 60)
"""Of the images; the square lies in rows 8 to 20 and columns 36 to 54."""

ROWS, COLUMNS = slice(8, 20), slice(36, 54)

NET = """
import torch
from torch import nn

def net(num_classes=2):
    torch.manual_seed(0)
    layers = nn.Conv2d({n}, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.ReLU()
    made = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
    with torch.no_grad():  # features grow with the last channel; class 1 likes them
        made[0].weight.zero_()
        made[0].weight[:, -1] = 1 / 9
        made[0].bias.fill_(0.1)
        made[2].weight.fill_(0.25)
        made[2].bias.zero_()
        made[6].weight.copy_(torch.tensor([[-1.0], [1.0]]).repeat(1, 4))
        made[6].bias.zero_()
    return made
"""


def write_png(path, image):
    if image.shape[2] == 4:
        image = image[:, :, [2, 1, 0, 3]]
    assert cv2.imwrite(str(path), image)


def write_tiff(path, image, *, planes):
    tifffile = pytest.importorskip("tifffile")
    if planes == "pages":
        pages = np.ascontiguousarray(image.transpose(2, 0, 1))
        tifffile.imwrite(path, pages, photometric="minisblack")
        return
    if planes == "separate":
        image = np.ascontiguousarray(image.transpose(2, 0, 1))
    tifffile.imwrite(path, image, photometric="minisblack", planarconfig=planes)


def write_npy(path, image):
    np.save(path, image[:, :, 0] if image.shape[2] == 1 else image)


@dataclass(frozen=True)
class Case:
    """A kind of image: channels, type, what a value of 1 is, and how a file is written."""

    channels: int
    dtype: str
    suffix: str
    write: object
    scale: float = 255

    @property
    def options(self):
        mean, std = (",".join([value] * self.channels) for value in ("0.4", "0.2"))
        scale = [] if self.scale == 255 else ["--scale", self.scale]
        return ["--mean", mean, "--std", std, *scale]

    def image(self, seed, bright=True):
        noise = np.random.default_rng(seed).uniform(0.1, 0.3, (*SIZE, self.channels))
        if bright:
            noise[ROWS, COLUMNS] = 0.9
        return (noise * self.scale).astype(self.dtype)


CASES = {
    "grey png": Case(1, "uint8", ".png", write_png),
    "grey png of 16 bits": Case(1, "uint16", ".png", write_png, scale=65535),
    "rgba png": Case(4, "uint8", ".png", write_png),
    "two floats in npy": Case(2, "float32", ".npy", write_npy, scale=1),
    "grey npy of 12 bits": Case(1, "int16", ".npy", write_npy, scale=4095),
    "six bytes in npy": Case(6, "uint8", ".npy", write_npy),
    "six bands of a tiff": Case(6, "uint16", ".tif", partial(write_tiff, planes="contig"), 10000),
    "five planes of a tiff": Case(5, "uint8", ".tiff", partial(write_tiff, planes="separate")),
    "four pages of a tiff": Case(4, "float32", ".tif", partial(write_tiff, planes="pages"), 1),
}


def write_data(folder: Path, case: Case) -> None:
    for label, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for index in range(4):
            path = folder / name / f"{index}{case.suffix}"
            case.write(path, case.image(10 * label + index, bright=label == 1))


def arch_of(folder: Path, channels: int) -> str:
    (folder / "net.py").write_text(NET.format(n=channels))
    return f"{folder / 'net.py'}:net"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports a case's network without a sigmoid branch; the same file for the same options."""
    made = {}

    def export(name, *options):
        options = options or ("--size", "20x30", "--resize-rule", "stretch", "--features")
        if (name, options) not in made:
            folder, case = tmp_path_factory.mktemp("exported"), CASES[name]
            arguments = [
                "export", "--arch", arch_of(folder, case.channels), "--branch", "softmax",
                "--classes", "input", "--out", folder / "m.onnx", *case.options, *options,
            ]  # fmt: skip
            done = CliRunner().invoke(main, [str(one) for one in arguments])
            assert done.exit_code == 0, done.output
            made[name, options] = folder / "m.onnx"
        return made[name, options]

    return export


def share_in_square(heatmap):
    """The share of a heatmap that lies in the square, a pixel of the input around it."""
    rows, columns = (slice(s.start - 2, s.stop + 2) for s in (ROWS, COLUMNS))
    low = np.median(heatmap)
    above = np.maximum(heatmap - low - 0.1, 0)
    return above[rows, columns].sum() / above.sum()


@pytest.mark.parametrize("name", CASES)
def test_from_training_to_the_overlay(cli, tmp_path, name):
    case = CASES[name]
    write_data(tmp_path / "data", case)
    size = ["--size", "20x30", "--resize-rule", "stretch"]
    trained = cli(
        "train", "--arch", arch_of(tmp_path, case.channels), "--data", tmp_path / "data",
        "--cache-dir", tmp_path / "cache", "--views", 2, "--epochs", 1, "--batch-size", 4,
        "--out", tmp_path / "branch.safetensors", *case.options, *size,
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    made = cli(
        "export", "--sigmoid-branch", tmp_path / "branch.safetensors", "--out", tmp_path / "m.onnx"
    )
    assert made.exit_code == 0, made.output
    spec = read_spec(tmp_path / "m.onnx")
    preprocessing = spec.preprocessing
    assert (preprocessing.channels, preprocessing.scale) == (case.channels, case.scale)
    assert (preprocessing.height, preprocessing.width) == (20, 30)
    assert max(error.max_rel for error in spec.parity.outputs.values()) < 1e-5
    out = tmp_path / "maps"
    done = cli("explain", tmp_path / "m.onnx", tmp_path / "data", "--out", out)
    assert done.exit_code == 0, done.output
    overlays = sorted(out.rglob("*.png"))
    assert len(overlays) == 8
    assert all(cv2.imread(str(one)).shape == (*SIZE, 3) for one in overlays)


@pytest.mark.parametrize("name", CASES)
def test_probability_and_place(exported, tmp_path, name):
    """By ONNX Runtime, from a file and from an array: as PyTorch has it, and at the square."""
    import torch

    from sigcam.classifier.zoo import load_model

    case = CASES[name]
    path = tmp_path / f"image{case.suffix}"
    image = case.image(1)
    case.write(path, image)
    model = exported(name)
    values = image.astype(np.float64) / case.scale
    # Halves in both directions: the mean of 2 x 2 pixels; bytes are rounded.
    small = values.reshape(20, 2, 30, 2, -1).mean((1, 3))
    tensor = torch.from_numpy((small - 0.4) / 0.2).permute(2, 0, 1)[None].float()
    net = load_model(arch_of(tmp_path, case.channels)).model
    want = net(tensor).softmax(1)[0, 1].item()
    with sigcam.load(model, backend="ort") as session:
        for source in (path, image, path.read_bytes()):
            (one,) = session.explain(source, classes=1)
            assert one.probability == pytest.approx(want, abs=2e-3)
            assert one.heatmap.shape == SIZE
            assert share_in_square(one.heatmap) > 0.9
            assert one.image.shape == image.shape
            assert one.overlay().shape == (*SIZE, 3)


@pytest.mark.parametrize("rule", ["crop", "stretch", "letterbox"])
@pytest.mark.parametrize("size", ["20x30", "24x20", "12x40"])
def test_place_in_an_input_that_is_not_square(exported, rule, size):
    case = CASES["grey png"]
    shorter = min(size.split("x"), key=int)
    resize = ["--resize", shorter] if rule == "crop" else []
    model = exported("grey png", "--size", size, "--resize-rule", rule, *resize)
    spec = read_spec(model)
    height, width = (int(side) for side in size.split("x"))
    assert spec.feature_shapes[0][1:] == (-(-height // 2), -(-width // 2))
    with sigcam.load(model, backend="ort") as session:
        (one,) = session.explain(case.image(1), classes=1)
    x0, y0, x1, y1 = one.crop_box
    inside = one.heatmap[max(y0, ROWS.start) : min(y1, ROWS.stop)]
    inside = inside[:, max(x0, COLUMNS.start) : min(x1, COLUMNS.stop)]
    assert inside.mean() > 0.4 > 0.2 > np.median(one.heatmap[y0:y1, x0:x1])
    assert share_in_square(one.heatmap) > 0.7
    # Nothing of the image is lost that the shapes don't ask for.
    if rule == "crop":
        assert (x1 - x0 == 60 or y1 - y0 == 40) and abs(
            (x1 - x0) / (y1 - y0) - width / height
        ) < 0.1


WRONG = {
    "six for grey": ("grey png", np.zeros((8, 8, 6), np.uint8), "takes|is", r"\[H, W, 1\]"),
    "rgb for six": ("six bytes in npy", np.zeros((8, 8, 3), np.uint8), "trained for 3", "6"),
    "first axis": ("six bytes in npy", np.zeros((6, 8, 8), np.uint8), "transpose", "6"),
    "bytes for floats": ("two floats in npy", np.zeros((8, 8, 2), np.uint8), "range", "uint8"),
    "floats for bytes": ("six bytes in npy", np.zeros((8, 8, 6), np.float32), "--scale", "float32"),
    "nan": ("two floats in npy", np.full((8, 8, 2), np.nan, np.float32), "not finite", "replace"),
    "rgb for rgba": ("rgba png", np.zeros((8, 8, 3), np.uint8), r"\[H, W, 4\]", r"\[8, 8, 3\]"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_other_images_are_refused(cli, exported, tmp_path, wrong):
    name, image, *words = WRONG[wrong]
    model = exported(name)
    np.save(tmp_path / "wrong.npy", image)
    with sigcam.load(model, backend="ort") as session:
        for source in (image, tmp_path / "wrong.npy"):
            for word in words:
                with pytest.raises(ImageError, match=word):
                    session.explain(source)
    done = cli("explain", model, tmp_path / "wrong.npy")
    assert done.exit_code == 1
    assert "wrong.npy" in done.output


def test_colour_for_a_grey_model(exported, tmp_path):
    """Luma of ITU-R BT.601, from arrays and files alike; alpha is dropped."""
    model = exported("grey png")
    colour = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    grey = (colour @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
    rgba = np.dstack([colour, np.full((20, 30), 7, np.uint8)])
    write_png(tmp_path / "rgba.png", rgba)
    assert cv2.imwrite(str(tmp_path / "rgb.bmp"), colour[:, :, ::-1])
    with sigcam.load(model, backend="ort") as session:
        (want,) = session.explain(grey)
        for source in (colour, rgba, tmp_path / "rgba.png", tmp_path / "rgb.bmp"):
            (got,) = session.explain(source)
            assert np.abs(got.image.astype(int) - grey[:, :, None]).max() <= 1
            assert got.probability == pytest.approx(want.probability, abs=1e-3)


@pytest.mark.parametrize("method", ["scorecam", "eigencam"])
@pytest.mark.parametrize("name", ["grey png", "two floats in npy", "six bytes in npy"])
def test_methods_of_several_passes(exported, method, name):
    with sigcam.load(exported(name), backend="ort") as session:
        (one,) = session.explain(CASES[name].image(1), classes=1, method=method)
    assert share_in_square(one.heatmap) > 0.9


def test_the_layouts_agree(exported):
    found = []
    case = CASES["two floats in npy"]
    for layout in ("raw", "float32"):
        model = exported("two floats in npy", "--size", "16", "--input", layout)
        with sigcam.load(model, backend="ort") as session:
            found.append(session.explain(case.image(3), classes=1)[0])
    assert found[0].probability == pytest.approx(found[1].probability, abs=1e-6)
    np.testing.assert_allclose(found[0].cam, found[1].cam, atol=1e-5)


def test_numbers_far_from_zero(cli, tmp_path):
    """Hounsfield units or metres: the mean comes off before the product, in the graph too."""
    arch = arch_of(tmp_path, 1)
    made = cli(
        "export", "--arch", arch, "--branch", "softmax", "--out", tmp_path / "m.onnx", "--size", 16,
        "--resize-rule", "stretch", "--mean", "30000", "--std", "2", "--scale", 1,
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    image = (30000 + np.random.default_rng(0).normal(0, 2, (16, 16))).astype(np.float32)
    with sigcam.load(tmp_path / "m.onnx", backend="ort") as session:
        (one,) = session.explain(image)
    import torch

    from sigcam.classifier.zoo import load_model

    tensor = torch.from_numpy((image.astype(np.float64) - 30000) / 2)[None, None].float()
    want = load_model(arch).model(tensor).softmax(1).max().item()
    assert one.probability == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "0x20"], "height x width"),
        (["--size", "20x30x3"], "height x width"),
        (["--mean", "0.5"], "give both"),
        (["--mean", "a,b", "--std", "1,1"], "numbers with commas"),
        (["--mean", "0.5", "--std", "0"], "above 0"),
        (["--scale", "0"], "scale must be"),
        (["--scale", "1", "--input", "uint8"], "float32_nhwc"),
        (["--input", "raw"], "uint8_nhwc"),
    ],
)
def test_options_that_are_refused(cli, tmp_path, options, message):
    arch = arch_of(tmp_path, 3)
    out = ["--out", tmp_path / "m.onnx"]
    done = cli("export", "--arch", arch, "--branch", "softmax", "--size", 16, *out, *options)
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert not (tmp_path / "m.onnx").exists()


def test_a_network_of_another_number_of_channels(cli, tmp_path):
    """The error says how many channels, and following it works."""
    arch = arch_of(tmp_path, 4)
    out = ["--branch", "softmax", "--size", 16, "--out", tmp_path / "m.onnx"]
    done = cli("export", "--arch", arch, *out)
    assert done.exit_code != 0
    assert "Traceback" not in done.output
    assert "images of 4 channels, the images given have 3" in done.output
    assert "mean and std of 4 numbers each (--mean, --std)" in done.output
    followed = cli(
        "export", "--arch", arch, *out, "--mean", "0.5,0.5,0.5,0.5", "--std", "0.2,0.2,0.2,0.2"
    )
    assert followed.exit_code == 0, followed.output


def test_torchvision_takes_rgb(cli, tmp_path):
    done = cli(
        "export", "--arch", "squeezenet1_1", "--branch", "softmax", "--mean", "0.5", "--std", "0.2",
        "--out", tmp_path / "m.onnx",
    )  # fmt: skip
    assert done.exit_code == 2
    assert "timm/" in done.output


@pytest.mark.parametrize("name", ["grey png", "two floats in npy", "six bytes in npy"])
def test_evaluation(cli, exported, tmp_path, name):
    write_data(tmp_path / "data", CASES[name])
    model = exported(name)
    done = cli(
        "evaluate", model, "--data", tmp_path / "data", "--out", tmp_path / "report",
        "--faithfulness", "confidence", "--faithfulness", "road", "--faithfulness", "insertion",
        "--faithfulness", "deletion", "--steps", 4,
    )  # fmt: skip
    assert done.exit_code == 0, done.output


def test_info_names_the_channels(cli, exported):
    model = exported("two floats in npy")
    done = cli("info", model)
    assert "float32_nhwc 20x30" in done.output
    assert "2: mean 0.4, 0.4; std 0.2, 0.2; scale 1" in done.output
    assert json.loads(cli("info", model, "--json").stdout)["preprocessing"]["scale"] == 1


def test_videos_are_for_grey_and_rgb_models(cli, exported, tmp_path):
    from sigcam.images.video import write_video

    path = tmp_path / "clip.avi"
    frame = CASES["grey png"].image(1).repeat(3, axis=2)
    with write_video(path, *SIZE[::-1], fps=5.0) as writer:
        for _ in range(3):
            writer.write(frame)
    out = tmp_path / "overlay.avi"
    done = cli("explain", exported("grey png"), path, "--out", out)
    assert done.exit_code == 0, done.output
    assert out.exists()
    for name in ("six bytes in npy", "grey png of 16 bits"):
        done = cli("explain", exported(name), path)
        assert done.exit_code == 2
        assert "video" in done.output


@pytest.mark.parametrize("name", ["six bytes in npy", "two floats in npy"])
def test_fewer_bits(cli, exported, tmp_path, name):
    case = CASES[name]
    for index in range(24):
        case.write(tmp_path / f"{index}{case.suffix}", case.image(index, bright=index % 2 == 0))
    done = cli(
        "quantize", exported(name), "--data", tmp_path, "--out", tmp_path / "q.onnx",
        "--calibration", 8, "--held-out", 8,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    with sigcam.load(tmp_path / "q.onnx", backend="ort") as session:
        (one,) = session.explain(case.image(1), classes=1)
    assert share_in_square(one.heatmap) > 0.9


def test_openvino(exported):
    pytest.importorskip("openvino")
    for name in ("six bytes in npy", "two floats in npy"):
        image, found = CASES[name].image(1), []
        for backend in ("ort", "openvino"):
            with sigcam.load(exported(name), backend=backend) as session:
                found += session.explain(image, classes=1)
        np.testing.assert_allclose(found[0].cam, found[1].cam, rtol=1e-4, atol=1e-5)


def test_a_branch_for_other_channels(cli, tmp_path):
    case = CASES["grey png"]
    write_data(tmp_path / "data", case)
    branch = tmp_path / "branch.safetensors"
    trained = cli(
        "train", "--arch", arch_of(tmp_path, 1), "--data", tmp_path / "data", "--size", "16x24",
        "--cache-dir", tmp_path / "cache", "--views", 1, "--epochs", 1, "--out", branch,
        *case.options,
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    colours = ["--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2"]
    done = cli("export", "--sigmoid-branch", branch, "--out", tmp_path / "m.onnx", *colours)
    assert done.exit_code == 1
    assert "for the number of channels 1, not 3" in done.output


def test_a_timm_network_for_six_channels():
    pytest.importorskip("timm")
    from sigcam.classifier.build import build_classifier

    mean, std = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0.2,) * 6
    built = build_classifier(
        "timm/test_resnet", size=(64, 96), mean=mean, std=std, scale=10000, num_classes=3
    )
    assert (built.dual.channels, built.dual.input_size) == (6, (64, 96))
    assert (built.preprocessing.mean, built.preprocessing.std) == (mean, std)
    assert built.preprocessing.layout == "float32_nhwc"
