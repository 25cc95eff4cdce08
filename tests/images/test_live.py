"""Live sources: the newest frames to who is slow, counted drops, ends and returns."""

import os
import threading
import time

import cv2
import numpy as np
import pytest

from sigcam.core.errors import UsageError, VideoError
from sigcam.images.video import LiveSource, write_video
from sigcam.images.video.frames import per_second
from sigcam.images.video.live import is_live
from sigcam.images.video.pyav import has_pyav
from tests.support.streams import camera, grey, number_of

READERS = ["opencv", pytest.param("pyav", marks=pytest.mark.skipif(not has_pyav(), reason="av"))]


@pytest.fixture(params=READERS)
def reader(request, monkeypatch):
    """Reads addresses and pipes by each library."""
    monkeypatch.setattr("sigcam.images.video.pyav.has_pyav", lambda: request.param == "pyav")
    return {"opencv": "OpenCV", "pyav": "PyAV"}[request.param]


def test_a_slow_consumer_gets_the_newest_frames(reader):
    with camera(rate=40) as server, LiveSource(server.address, queue=2) as source:
        assert source.reader.startswith(reader)
        assert (source.width, source.height) == (64, 48)
        seen = []
        for frame in source.timed():
            seen.append((number_of(frame.image), server.sent, frame))
            time.sleep(0.25)  # ten frames come meanwhile
            if len(seen) == 6:
                break
        waiting = len(source._queue)
    numbers = [number for number, _, _ in seen]
    assert numbers == sorted(set(numbers))
    # When it was taken, a frame was one of the last that had come: none is late by the 45 frames
    # that a queue without an end would be behind. (On a busy machine the server's own count is
    # some frames ahead of what has arrived.)
    late = [sent - number for number, sent, _ in seen[1:]]
    assert max(late) <= 20, (late, numbers)
    assert numbers[-1] - numbers[0] > 25
    assert waiting <= 2
    assert source.dropped >= 25
    assert source.read == pytest.approx(len(seen) + source.dropped + waiting, abs=2)
    # Each knows its place among those that came, and the time of its coming.
    assert [frame.number for *_, frame in seen] == pytest.approx(numbers, abs=1)
    times = [frame.seconds for *_, frame in seen]
    assert np.diff(times).min() > 0
    assert times[-1] - times[0] > 0.7 * (numbers[-1] - numbers[0]) / 40  # as they were sent


def test_a_quick_consumer_gets_all(reader):
    with camera(rate=100, each=30) as server, LiveSource(server.address, queue=40) as source:
        numbers = [number_of(image) for image in source]
    assert numbers == list(range(30))
    assert (source.read, source.dropped, source.failed) == (30, 0, False)
    assert source.ended == f"{server.address} ended after 30 frames"


def test_so_many_frames_a_second(reader):
    with (
        camera(rate=50, each=60) as server,
        LiveSource(server.address, wanted=per_second(5), queue=50) as source,
    ):
        seconds = [frame.seconds for frame in source.timed()]
    assert source.read == 60
    assert 5 <= len(seconds) <= 12
    assert np.diff(seconds).max() < 0.5


def test_a_source_that_ends_is_opened_again(reader):
    with (
        camera(rate=100, each=5) as server,
        LiveSource(server.address, reconnect=1, queue=50) as source,
    ):
        seen = []
        for image in source:
            seen.append(number_of(image))
            if len(seen) == 12:
                break
    assert seen == list(range(12))
    assert source.reconnected == 2
    assert server.connections == 3


def test_a_source_that_goes_away_for_good(reader):
    with camera(rate=100, each=5) as server:
        address = server.address
        source = LiveSource(address, reconnect=1, queue=50)
        first = next(iter(source))
        while server.sent < 5:
            time.sleep(0.01)
        time.sleep(0.2)
    assert number_of(first) == 0
    with source:
        left = list(source)
    assert len(left) >= 4
    assert source.failed
    assert address in source.ended


def test_a_source_that_goes_quiet(reader):
    with camera(rate=100, each=5, then="quiet") as server:
        with LiveSource(server.address, timeout=1, queue=50) as source:
            begun = time.monotonic()
            assert len(list(source)) == 5
            assert time.monotonic() - begun < 5
        assert source.failed
        assert "it has sent nothing for 1 s" in source.ended


def test_a_named_pipe(reader, tmp_path):
    whole, pipe = tmp_path / "whole.mkv", tmp_path / "pipe"
    with write_video(whole, 64, 48, 10) as writer:
        for number in range(60):
            writer.write(grey(number))
    os.mkfifo(pipe)
    assert is_live(str(pipe))

    def feed():
        with pipe.open("wb") as end:
            end.write(whole.read_bytes())

    feeder = threading.Thread(target=feed)
    feeder.start()
    with LiveSource(pipe, queue=100) as source:
        numbers = [number_of(image) for image in source]
    feeder.join()
    assert len(numbers) == 60
    assert np.abs(np.subtract(numbers, range(60))).max() <= 5
    assert source.ended == f"{pipe} ended after 60 frames"
    assert not source.failed


def test_stopping_a_source_that_waits(reader, tmp_path):
    """As a signal handler does, while the consumer waits for a frame that never comes."""
    with camera(rate=100, each=5, then="quiet") as server:
        with LiveSource(server.address, timeout=20, queue=9) as source:
            threading.Timer(0.4, source.stop).start()
            begun = time.monotonic()
            assert len(list(source)) <= 5
            assert time.monotonic() - begun < 3
        assert source.ended is None


def test_what_is_not_there(reader, tmp_path):
    with pytest.raises(VideoError, match="check the address"):
        LiveSource("http://127.0.0.1:9/stream")
    with pytest.raises(VideoError, match="there is no"):
        LiveSource(tmp_path / "pipe")
    with pytest.raises(UsageError, match="queue must be at least 1"):
        LiveSource("camera:0", queue=0)
    with (
        camera(rate=50) as server,
        pytest.raises(VideoError, match="64 x 48 pixels, more than max_pixels = 100"),
    ):
        LiveSource(server.address, max_pixels=100)


@pytest.mark.parametrize(
    ("name", "target"), [(0, 0), ("camera:2", 2), ("camera:/dev/video0", "/dev/video0")]
)
def test_a_camera(monkeypatch, name, target):
    made = []

    class Camera:
        """Gives three frames and is then unplugged."""

        def __init__(self, *asked):
            made.append(asked)
            self.left = 3

        def isOpened(self):  # noqa: N802 (OpenCV's name)
            return True

        def grab(self):
            self.left -= 1
            return self.left >= 0

        def retrieve(self):
            return True, np.full((48, 64, 3), (200, 0, 0), np.uint8)  # blue

        def get(self, number):
            return 30.0 if number == cv2.CAP_PROP_FPS else 0.0

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    with LiveSource(name, queue=5) as source:
        images = list(source)
    assert made == [(target, cv2.CAP_ANY, [])]
    assert len(images) == 3
    assert images[0][0, 0].tolist() == [0, 0, 200]
    assert source.fps == 30
    assert source.failed
    assert "plugged in" in source.ended
    assert source.name == f"camera:{target}"


def test_a_camera_that_is_not_there(capfd):
    with pytest.raises(VideoError, match=r"no camera:63 .*plugged in"):
        LiveSource("camera:63")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "live"),
    [
        ("camera:0", True),
        ("rtsp://user:secret@door:554/1", True),
        ("http://127.0.0.1:8080/?action=stream", True),
        ("https://example.com/hls/index.m3u8", True),
        ("udp://@239.0.0.1:1234", True),
        ("https://example.com/clip.MP4?token=1", False),
        ("https://example.com/cat.jpg", False),
        ("clip.mp4", False),
        ("images/*.jpg", False),
        ("", False),
        ("hf://owner/name", False),
    ],
)
def test_which_names_are_live(name, live):
    assert is_live(name) is live
