"""`sigcam explain` on a video and on folders: what is printed, written and refused."""

import json
from fractions import Fraction

import numpy as np
import pytest

from sigcam.images.video import VideoReader, write_video
from tests.support import videos

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A red square that moves to the right, 20 frames."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with write_video(path, 64, 48, 10) as writer:
        for number in range(20):
            image = np.full((48, 64, 3), 30, np.uint8)
            image[10:30, 2 * number : 2 * number + 20] = (230, 30, 30)
            writer.write(image)
    return path


def records(found):
    return [json.loads(line) for line in found.stdout.splitlines()]


def frames_of(path):
    with VideoReader(path) as video:
        return list(video.frames()), video


@pytest.mark.parametrize("every", [1, 7])
def test_a_video_becomes_lines_and_an_overlay(work, cli, clip, tmp_path, every):
    out = tmp_path / "overlay.mp4"
    options = [] if every == 1 else ["--every", every]
    found = cli("explain", work.top1, clip, "--json", "--out", out, *options)
    assert found.exit_code == 0, found.stderr
    got = records(found)
    assert [one["frame"] for one in got] == list(range(0, 20, every))
    assert [one["seconds"] for one in got] == pytest.approx([f / 10 for f in range(0, 20, every)])
    assert all(one["explanations"][0]["width"] == 64 for one in got)
    overlay, video = frames_of(out)
    original, _ = frames_of(clip)
    assert (len(overlay), video.fps) == (20, 10)
    assert (video.width, video.height) == (64, 48)
    # Each frame is drawn over its own image: the square is where it was.
    for number in (0, 5, 19):
        inside = original[number][20, 2 * number + 10].astype(int)
        outside = original[number][44, 60].astype(int)
        assert inside[0] > outside[0] + 150
        drawn = overlay[number].astype(int)
        assert drawn[20, 2 * number + 10, 0] > drawn[20, (2 * number + 40) % 64, 0]
        assert np.abs(drawn - original[number]).max() > 40
    assert "20 frames in" in found.stderr
    assert "a second" in found.stderr
    assert "without sound" in found.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["overlay.mp4"]


@pytest.mark.parametrize("options", [[], ["--every", 3], ["--fps", 2]])
def test_uneven_times_and_sound_come_through(work, cli, tmp_path, options):
    pytest.importorskip("av")
    path = videos.write_clip(tmp_path / "clip.webm", codec="libvpx", rate=1000, sound="libopus",
                             base=Fraction(1, 1000))  # fmt: skip
    out = tmp_path / "overlay.mp4"
    found = cli("explain", work.top1, path, "--json", "--out", out, *options)
    assert found.exit_code == 0, found.stderr
    every, fps = (range(0, 10, 3), (0, 5, 6, 8, 9))
    wanted = {"--every": every, "--fps": fps}[options[0]] if options else range(10)
    got = records(found)
    assert [one["frame"] for one in got] == list(wanted)
    seconds = [videos.UNEVEN[number] for number in wanted]
    assert [one["seconds"] for one in got] == pytest.approx(seconds, abs=1e-3)
    # The overlay has every frame at its time, and the sound.
    before, after = videos.times_of(path)[0], videos.times_of(out)[0]
    assert len(after) == 10
    assert np.diff(after) == pytest.approx(np.diff(before), abs=2e-3)
    assert len(videos.sound_of(out)[1]) > 50
    assert "with its sound" in found.stderr


def test_without_pyav_the_time_is_kept_too(work, cli, tmp_path, monkeypatch):
    pytest.importorskip("av")
    path = videos.write_clip(tmp_path / "clip.mp4", sound="aac")
    monkeypatch.setattr("sigcam.images.video.pyav.has_pyav", lambda: False)
    out = tmp_path / "overlay.mp4"
    found = cli("explain", work.top1, path, "--json", "--out", out)
    assert found.exit_code == 0, found.stderr
    assert [one["seconds"] for one in records(found)] == pytest.approx(videos.UNEVEN, abs=1e-3)
    assert "111 frames were repeated and 0 left out to keep the time" in found.stderr
    assert "read by OpenCV" in found.stderr
    assert "without sound" in found.stderr
    assert videos.times_of(out)[0][-1] == pytest.approx(2.0, abs=0.01)


def test_maps_between_explained_frames_are_the_latest(work, cli, tmp_path):
    """Frame by frame, the overlay of every third frame is drawn with the map of that frame."""
    from sigcam import load

    path = tmp_path / "clip.avi"
    with write_video(path, 64, 48, 10) as writer:
        for number in range(8):
            image = np.full((48, 64, 3), 30, np.uint8)
            image[5:25, 6 * number : 6 * number + 20] = (230, 30, 30)
            writer.write(image)
    out = tmp_path / "overlay.avi"
    found = cli("explain", work.top1, path, "--every", 3, "--out", out)
    assert found.exit_code == 0, found.stderr
    images, drawn = frames_of(path)[0], frames_of(out)[0]
    assert len(drawn) == 8
    with load(work.top1) as session:
        results = [session.explain(image)[0] for image in images]
    for number, image in enumerate(drawn):
        near = []
        for result in results:
            whole = result.overlay(image=images[number])
            near.append(float(np.abs(whole.astype(int) - image).mean()))
        latest = near[number // 3 * 3]
        assert latest < 6, (number, near)
        assert latest == min(near)


def test_lines_of_a_video_name_the_frame(work, cli, clip):
    found = cli("explain", work.named, clip, "--every", 19, "--topk", 2)
    assert found.exit_code == 0, found.stderr
    names = [line.split("\t")[0] for line in found.stdout.splitlines()]
    assert names == [f"{clip}#{frame}" for frame in (0, 0, 19, 19)]


def test_a_video_that_ends_early_is_written_as_far_as_it_goes(work, cli, clip, tmp_path):
    whole, cut, out = (tmp_path / name for name in ("whole.avi", "cut.avi", "overlay.avi"))
    with write_video(whole, 64, 48, 10) as writer:
        for image in frames_of(clip)[0]:
            writer.write(image)
    data = whole.read_bytes()
    cut.write_bytes(data[: int(len(data) * 0.8)])
    found = cli("explain", work.top1, cut, "--json", "--out", out)
    assert found.exit_code == 1
    count = len(records(found))
    assert 0 < count < 20
    assert f"ends after {count} of the 20 frames" in found.stderr
    assert f"overlay.avi: {count} frames" in found.stderr
    assert len(frames_of(out)[0]) == count


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["{clip}", "{image}"], 2, "explained alone"),
        (["{clip}", "--format", "png"], 2, "--format is for images"),
        (["{clip}", "--out", "{new}.png"], 2, "cannot write a video"),
        (["{clip}", "--out", "{clip}"], 2, "is an input"),
        (["{clip}", "--out", "{new}.mp4", "--topk", "2"], 2, "shows one class"),
        (["{image}", "--every", "2"], 2, "--every is for a video"),
        (["{image}", "--out", "{new}.mp4"], 2, "comes out of a video"),
        (["{new}.mp4"], 1, "no video file"),
        (["{bad}"], 1, "bad.mp4 is no video that"),
        (["{clip}", "--max-pixels", "100"], 1, "max_pixels"),
    ],
)
def test_what_does_not_fit_is_refused(work, cli, clip, tmp_path, arguments, code, says):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    places = {
        "clip": clip,
        "image": work.data / "red" / "0.png",
        "new": tmp_path / "new",
        "bad": bad,
    }
    found = cli("explain", work.named, *(a.format(**places) for a in arguments))
    assert found.exit_code == code, found.stderr
    assert says in found.stderr
    assert found.stdout == ""
    assert list(tmp_path.iterdir()) == [bad]


def test_a_failing_backend_leaves_no_overlay(work, cli, clip, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sigcam.images.video.VideoWriter.write", failing)
    found = cli("explain", work.top1, clip, "--out", tmp_path / "overlay.mp4")
    assert found.exit_code == 130
    assert "Ctrl-C" in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_videos_in_a_folder_are_no_images(work, cli, clip):
    found = cli("explain", work.top1, clip.parent)
    assert found.exit_code == 2
    assert "no images" in found.stderr


@pytest.mark.parametrize("readers", [1, 3])
def test_verbose_tells_the_rate(work, cli, readers):
    found = cli("explain", work.top1, work.data, "--verbose", "--readers", readers)
    assert found.exit_code == 0
    assert "8 images in" in found.stderr
    assert "the backend ran" in found.stderr
    names = [line.split("\t")[0] for line in found.stdout.splitlines()]
    assert names == sorted(names)
