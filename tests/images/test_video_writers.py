"""Overlay videos: frames at their times, the sound, and one rate where there is no other."""

from fractions import Fraction

import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.images.video import VideoReader, write_video
from tests.support.videos import (
    SIZE,
    UNEVEN,
    frame,
    numbers,
    sound_of,
    times_of,
    write_clip,
)

av = pytest.importorskip("av")

TENTHS = tuple(number / 10 for number in range(10))


def copied(source, target, library="auto"):
    with (
        VideoReader(source) as video,
        write_video(target, *SIZE, video.fps, source=video, writer=library) as writer,
    ):
        for one in video.timed(lambda *_: True):
            writer.write(one.image, one.seconds)
    return writer


def shown_at(path, second):
    """The number of the frame that a file shows at a time."""
    times, images = times_of(path)
    return numbers([images[np.searchsorted(times, second + 1e-6, "right") - 1]])[0]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".m4v"])
@pytest.mark.parametrize("name", ["clip.mp4", "browser.webm"])
def test_frames_keep_their_times(tmp_path, name, suffix):
    options = {"codec": "libvpx", "rate": 1000, "base": Fraction(1, 1000)}
    source = write_clip(tmp_path / name, **(options if name == "browser.webm" else {}))
    writer = copied(source, tmp_path / f"out{suffix}")
    times, images = times_of(tmp_path / f"out{suffix}")
    assert times == pytest.approx(times_of(source)[0], abs=1e-3)
    assert numbers(images) == list(range(10))
    assert (writer.written, writer.repeated, writer.left_out) == (10, 0, 0)
    assert writer.notes == []


@pytest.mark.parametrize(
    ("suffix", "library"), [(".avi", "pyav"), (".mp4", "opencv"), (".webm", "opencv")]
)
def test_a_file_of_one_rate_keeps_the_time(tmp_path, suffix, library):
    """What it shows at any time is what the video does, within a sixtieth of a second."""
    source = write_clip(tmp_path / "clip.mp4")
    out = tmp_path / f"out{suffix}"
    writer = copied(source, out, library)
    for number, time in enumerate(UNEVEN):
        until = (*UNEVEN[1:], 2.0)[number]
        if until - time > 2 / 60:
            assert shown_at(out, time + 1 / 60) == number
            assert shown_at(out, until - 1 / 60) == number
    assert writer.repeated == 121 - 10
    assert writer.left_out == 0
    assert "60 frames a second: 111 frames were repeated and 0 left out" in writer.notes[-1]


@pytest.mark.parametrize("library", ["pyav", "opencv"])
def test_a_video_of_one_rate_stays_as_it_is(tmp_path, library):
    source = write_clip(tmp_path / "clip.mp4", TENTHS, rate=10)
    writer = copied(source, tmp_path / "out.avi", library)
    times, images = times_of(tmp_path / "out.avi")
    assert numbers(images) == list(range(10))
    assert times == pytest.approx(TENTHS, abs=0.02)
    assert (writer.repeated, writer.left_out) == (0, 0)


def test_frames_of_one_moment_are_counted(tmp_path):
    with write_video(tmp_path / "out.avi", *SIZE, 10, writer="opencv") as writer:
        for number, seconds in enumerate((0, 0.01, 0.1, 0.12, 0.14, 0.2)):
            writer.write(frame(number), seconds)
    assert numbers(times_of(tmp_path / "out.avi")[1]) == [1, 4, 5]
    assert (writer.written, writer.left_out, writer.repeated) == (6, 3, 0)


@pytest.mark.parametrize("later", [0, 0.5, 5])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_the_sound_is_copied_and_stays_in_time(tmp_path, later, name, suffix):
    source = write_clip(tmp_path / name, [later + time for time in UNEVEN], sound="aac")
    out = tmp_path / f"out{suffix}"
    writer = copied(source, out)
    assert writer.sound
    assert writer.notes == []
    (old_times, old), (new_times, new) = sound_of(source), sound_of(out)
    if name != "clip.ts":  # whose packets have a header each
        assert new == old[-len(new) :]
        assert len(old) - len(new) <= 2  # what a decoder leaves out at the beginning
    # Between sound and frames nothing has moved.
    gap = np.subtract(old_times[-1], times_of(source)[0])
    assert np.subtract(new_times[-1], times_of(out)[0]) == pytest.approx(gap, abs=2e-3)


@pytest.mark.parametrize(
    ("sound", "suffix", "taken"),
    [
        ("aac", ".webm", False),
        ("libopus", ".webm", True),
        ("libopus", ".mp4", True),
        ("aac", ".avi", True),
        ("pcm_s16le", ".mkv", True),
        ("pcm_s16le", ".webm", False),
    ],
)
def test_sound_that_a_format_takes_or_not(tmp_path, sound, suffix, taken):
    source = write_clip(tmp_path / "clip.mkv", sound=sound)
    writer = copied(source, tmp_path / f"out{suffix}")
    assert writer.sound is taken
    assert len(times_of(tmp_path / f"out{suffix}")[0]) >= 10
    if taken:
        assert len(sound_of(tmp_path / f"out{suffix}")[1]) > 10
    else:
        assert "can't be copied into webm, so it is left out; .mkv" in writer.notes[0]


def test_opencv_says_that_it_copies_no_sound(tmp_path):
    source = write_clip(tmp_path / "clip.mp4", TENTHS, rate=10, sound="aac")
    writer = copied(source, tmp_path / "out.mp4", "opencv")
    assert not writer.sound
    assert 'pip install "sigcam[video]"' in writer.notes[0]


def test_colours_come_back(tmp_path):
    """BT.601 is what is written, and what the file says."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24], image[24:, :32], image[24:, 32:] = (30, 200, 60), (200, 40, 180), (90, 90, 240)
    for suffix in (".mp4", ".webm", ".avi"):
        with write_video(tmp_path / f"out{suffix}", *SIZE, 10) as writer:
            for _ in range(3):
                writer.write(image)
        back = times_of(tmp_path / f"out{suffix}")[1][1]
        for y, x in ((8, 30), (40, 12), (40, 50)):
            assert np.abs(back[y, x].astype(int) - image[y, x]).max() <= 12, suffix


def test_an_odd_size_loses_its_last_pixel(tmp_path):
    with write_video(tmp_path / "out.mp4", 65, 49, 10) as writer:
        writer.write(frame(0, (65, 49)))
    assert times_of(tmp_path / "out.mp4")[1][0].shape == (48, 64, 3)


def test_rates_that_cannot_be(tmp_path):
    for fps in (0, -1, 1000, float("nan")):
        with (
            pytest.raises(UsageError, match="fps must be above 0"),
            write_video(tmp_path / "out.mp4", *SIZE, fps),
        ):
            pass
    assert list(tmp_path.iterdir()) == []
