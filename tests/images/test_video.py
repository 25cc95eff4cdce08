"""Videos that OpenCV wrote: frames in and out, damaged files, what is left on disk."""

import numpy as np
import pytest

from sigcam.core.errors import StorageError, UsageError, VideoError
from sigcam.images.suffixes import VIDEO_SUFFIXES
from sigcam.images.video import CODECS, VideoReader, write_video

SIZE = (64, 48)


def frame(number, size=SIZE):
    """A grey that tells the frame's number, and a red square at the upper left."""
    image = np.full((size[1], size[0], 3), 20 + 7 * number, np.uint8)
    image[:16, :16] = (250, 10, 10)
    return image


def write_clip(path, count=30, fps=12.5, size=SIZE):
    with write_video(path, *size, fps) as writer:
        for number in range(count):
            writer.write(frame(number, size))
    return path


def numbers(frames):
    return [round((int(np.median(one)) - 20) / 7) for one in frames]


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_what_is_written_is_read(tmp_path, suffix):
    path = write_clip(tmp_path / f"clip{suffix}")
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    with VideoReader(path) as video:
        assert (video.width, video.height, video.fps, video.promised) == (64, 48, 12.5, 30)
        frames = list(video.frames())
    assert numbers(frames) == list(range(30))
    assert (video.read, video.problem) == (30, None)
    red, green, blue = frames[3][4:12, 4:12].mean((0, 1))
    assert red > 200 > 60 > max(green, blue)  # RGB, not BGR


@pytest.mark.parametrize("every", [2, 7, 29, 30, 100])
def test_every_nth_frame(tmp_path, every):
    with VideoReader(write_clip(tmp_path / "clip.mp4")) as video:
        assert numbers(video.frames(every)) == list(range(0, 30, every))
    assert (video.read, video.problem) == (30, None)


def test_a_video_that_ends_early(tmp_path):
    data = write_clip(tmp_path / "whole.avi").read_bytes()
    path = tmp_path / "cut.avi"
    path.write_bytes(data[: int(len(data) * 0.8)])
    with VideoReader(path) as video:
        count = len(list(video.frames()))
    assert 0 < count < 30
    assert f"ends after {count} of the 30 frames" in video.problem


@pytest.mark.parametrize("content", [b"", b"hello", "mp4 without its end", "no frames"])
def test_what_is_no_video(tmp_path, content, capfd):
    path = tmp_path / "bad.mp4"
    if content == "mp4 without its end":
        content = write_clip(path).read_bytes()[:-300]
    if content == "no frames":
        path = write_clip(tmp_path / "none.avi", count=0)
    else:
        path.write_bytes(content)
    with pytest.raises(VideoError, match=path.name):
        VideoReader(path)
    assert capfd.readouterr().err == ""


def test_missing_and_too_large(tmp_path):
    with pytest.raises(VideoError, match="no video file"):
        VideoReader(tmp_path / "missing.mp4")
    path = write_clip(tmp_path / "clip.mp4", count=2)
    with pytest.raises(VideoError, match="64 x 48 pixels, more than max_pixels = 3000"):
        VideoReader(path, max_pixels=3000)


def test_joined_clips_of_two_sizes_come_in_one_size(tmp_path):
    """What OpenCV makes of a real one: every frame has the size of the first."""
    first = write_clip(tmp_path / "a.avi", count=10)
    second = write_clip(tmp_path / "b.avi", count=10, size=(96, 80))
    path = tmp_path / "both.avi"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    with VideoReader(path) as video:
        assert {one.shape for one in video.frames()} == {(48, 64, 3)}


def test_a_writer_leaves_nothing_half_done(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), write_video(path, *SIZE, 25) as writer:
        writer.write(frame(0))
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr("sigcam.images.video.writer._is_whole", lambda *_: False)
        with pytest.raises(StorageError, match="not written whole"):
            write_clip(path)
    assert [one.name for one in tmp_path.iterdir()] == ["clip.mp4"]
    assert path.read_bytes() == b"before"


def test_a_full_disk_is_noticed(tmp_path):
    """A file that lost its end is what a full disk leaves."""
    from sigcam.images.video.writer import _is_whole

    path = write_clip(tmp_path / "clip.mp4")
    assert _is_whole(path, 30)
    path.write_bytes(path.read_bytes()[:-300])
    assert not _is_whole(path, 30)


def test_formats_that_are_not_written(tmp_path):
    for name in ("clip.mpg", "clip.png", "clip"):
        with pytest.raises(UsageError, match=r"the suffixes are \.mp4"):
            write_clip(tmp_path / name)
    with pytest.raises(UsageError, match="at least 2 x 2"):
        write_clip(tmp_path / "clip.mp4", size=(1, 9))
    assert set(CODECS) < VIDEO_SUFFIXES
    assert list(tmp_path.iterdir()) == []
