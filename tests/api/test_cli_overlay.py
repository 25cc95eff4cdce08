"""`sigcam explain --overlay`: what is written, and what is refused."""

import cv2
import numpy as np
import pytest

import sigcam
from sigcam.images.overlay import OverlayOptions
from sigcam.images.video import VideoReader, write_video

NAMES = ("dim", "bright")


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.fixture(scope="module")
def model(make_artifact):
    return make_artifact()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A dim square and a bright one, so that their CAMs differ in size."""
    folder = tmp_path_factory.mktemp("images")
    for name, value in (("dim", 90), ("bright", 250)):
        image = np.zeros((120, 160, 3), np.uint8)
        image[30:70, 40:90] = value
        cv2.imwrite(str(folder / f"{name}.png"), image)
    return folder


def test_options_reach_the_file(cli, model, images, tmp_path):
    found = cli(
        "explain", model, images, "--out", tmp_path, "--overlay", "colour-map=turbo",
        "--overlay", "label", "--overlay", "contours=0.3,0.6", "--overlay", "alpha=0.9",
        "--overlay", "legend=no",
    )  # fmt: skip
    assert found.exit_code == 0, found.stderr
    options = OverlayOptions(colour_map="turbo", label=True, contours=(0.3, 0.6), alpha=0.9)
    with sigcam.load(model, "ort") as session:
        for name in NAMES:
            wanted = session.explain(images / f"{name}.png")[0].overlay(options)
            np.testing.assert_array_equal(read(tmp_path / f"{name}.png")[..., ::-1], wanted)


def test_the_map_alone_is_transparent(cli, model, images, tmp_path):
    found = cli("explain", model, images, "--out", tmp_path, "--overlay", "background=none")
    assert found.exit_code == 0, found.stderr
    alone = read(tmp_path / "dim.png")
    assert alone.shape == (120, 160, 4)
    assert alone[..., 3].min() == 0
    assert alone[..., 3].max() == round(0.75 * 255)


@pytest.mark.parametrize("spelling", ["range=shared", "range"])
def test_a_shared_range(cli, model, images, tmp_path, spelling):
    """The dim square is fainter than the bright one only where both have one range."""
    if spelling == "range":
        with sigcam.load(model, "ort") as session:
            found = sigcam.shared_cam_range(session.stream(sorted(images.iterdir())))
        spelling = f"range={found[0]!r},{found[1]!r}"
    options = ("--overlay", "background=none")
    cli("explain", model, images, "--out", tmp_path / "own", *options)
    found = cli(
        "explain", model, images, "--out", tmp_path / "one", *options, "--overlay", spelling
    )
    assert found.exit_code == 0, found.stderr
    own, one = (
        {name: int(read(tmp_path / kind / f"{name}.png")[..., 3].max()) for name in NAMES}
        for kind in ("own", "one")
    )
    assert own["dim"] == own["bright"] == one["bright"]
    assert one["dim"] < 0.8 * one["bright"]


@pytest.mark.slow
def test_a_video_has_its_options_too(cli, model, tmp_path):
    clip = tmp_path / "clip.mp4"
    with write_video(clip, 160, 120, 10) as writer:
        for value in (60, 250):
            image = np.zeros((120, 160, 3), np.uint8)
            image[30:70, 40:90] = value
            writer.write(image)
    drawn = {}
    for kind in ("own", "shared"):
        options = ("--overlay", "range=shared") if kind == "shared" else ()
        out = tmp_path / f"{kind}.mp4"
        found = cli("explain", model, clip, "--out", out, "--overlay", "opacity=even", *options)
        assert found.exit_code == 0, found.stderr
        with VideoReader(out) as video:
            drawn[kind] = [frame.astype(int) for frame in video.frames()]
    dim, bright = 0, 1
    assert np.abs(drawn["own"][bright] - drawn["shared"][bright]).mean() < 5
    assert np.abs(drawn["own"][dim] - drawn["shared"][dim]).mean() > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overlay", "labels"], "did you mean label?"),
        (["--overlay", "colour-map=tubro"], "did you mean 'turbo'?"),
        (["--overlay", "colour-map"], "needs a value; write --overlay colour-map=VALUE"),
        (["--overlay", "label", "--overlay", "label"], "is given twice"),
        (["--overlay", "alpha=high"], "alpha must be a number, got 'high'"),
        (["--overlay", "alpha=2"], "alpha must be from 0 to 1, got 2"),
        (["--overlay", "contours=0.5;0.6"], "contours must be a number"),
        (["--overlay", "range=3,1"], "low and then high, got 3 and 1"),
        (["--overlay", "label=maybe"], "takes yes or no"),
        (["--overlay", "font=missing.ttf"], "no font that can be read at missing.ttf"),
        (["--overlay", "label", "--format", "json"], "--format json draws none"),
        (["--overlay", "background=none", "--format", "jpg"], "a .jpg file can't be"),
    ],
)
def test_what_is_refused(cli, model, images, tmp_path, options, message):
    found = cli("explain", model, images, "--out", tmp_path / "maps", *options)
    assert found.exit_code == 2
    assert message in found.stderr
    assert not (tmp_path / "maps").exists()


def test_without_an_output_nothing_is_drawn(cli, model, images):
    found = cli("explain", model, images, "--overlay", "label")
    assert found.exit_code == 2
    assert "--out" in found.stderr
