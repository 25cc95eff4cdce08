"""`sigcam explain` on live sources: the newest frames, a whole overlay at Ctrl-C, clear ends."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from sigcam.images.video import VideoReader, write_video
from sigcam.images.video.pyav import has_pyav
from tests.support.streams import camera, grey

pytestmark = pytest.mark.slow

READERS = [False, pytest.param(True, marks=pytest.mark.skipif(not has_pyav(), reason="no PyAV"))]


@pytest.fixture(params=READERS)
def pyav(request, monkeypatch):
    """With PyAV and without it."""
    monkeypatch.setattr("sigcam.images.video.pyav.has_pyav", lambda: request.param)
    return request.param


def records(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_stream_to_its_end(work, cli, pyav, tmp_path):
    out = tmp_path / "overlay.mkv"
    with camera(rate=30, each=20) as server:
        found = cli("explain", work.top1, server.address, "--json", "--out", out)
    assert found.exit_code == 0, found.stderr
    got = records(found.stdout)
    assert 5 < len(got) <= 20
    assert [one["image"] for one in got] == [f"{server.address}#{one['frame']}" for one in got]
    seconds = [one["seconds"] for one in got]
    assert seconds[0] < 0.3
    assert seconds == sorted(seconds)
    dropped = 20 - len(got)
    assert f"of 20 that came, {dropped} were dropped for newer ones" in found.stderr
    assert f"{server.address} ended after 20 frames" in found.stderr
    with VideoReader(out) as video:
        times = [frame.seconds for frame in video.timed(lambda *_: True)]
    if pyav:
        assert times == pytest.approx([one - seconds[0] for one in seconds], abs=3e-3)
    assert times[-1] == pytest.approx(seconds[-1], abs=0.3)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_ctrl_c_leaves_a_whole_overlay(work, tmp_path, suffix, stop):
    out = tmp_path / f"overlay{suffix}"
    words = ["explain", str(work.top1), "{address}", "--json", "--out", str(out), "--fps", "20"]
    with camera(rate=60) as server:
        words[2] = server.address
        process = subprocess.Popen(
            [sys.executable, "-m", "sigcam", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        lines = [process.stdout.readline() for _ in range(8)]
        process.send_signal(stop)
        rest, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    got = records("".join(lines) + rest)
    assert "was stopped" in errors
    assert f"{out}: {len(got)} frames" in errors
    assert [one.name for one in tmp_path.iterdir()] == [out.name]
    with VideoReader(out) as video:
        frames = list(video.timed(lambda *_: True))
    assert video.problem is None
    assert len(frames) >= len(got) >= 8
    assert frames[-1].seconds == pytest.approx(got[-1]["seconds"], abs=0.05)


def test_a_named_pipe(work, cli, pyav, tmp_path):
    whole, pipe = tmp_path / "whole.mkv", tmp_path / "pipe"
    with write_video(whole, 64, 48, 10) as writer:
        for number in range(40):
            writer.write(grey(number))
    os.mkfifo(pipe)
    feeder = threading.Thread(target=lambda: pipe.write_bytes(whole.read_bytes()))
    feeder.start()
    found = cli("explain", work.top1, pipe, "--json")
    feeder.join()
    assert found.exit_code == 0, found.stderr
    assert f"{pipe} ended after 40 frames" in found.stderr
    assert 1 <= len(records(found.stdout)) <= 40


def test_a_password_is_not_told(work, cli, pyav):
    with camera(rate=30, each=10) as server:
        address = server.address.replace("http://", "http://me:secret@")
        found = cli("explain", work.top1, address, "--json")
        gone = cli("explain", work.top1, "rtsp://me:secret@127.0.0.1:9/1")
        file = cli("explain", work.top1, "http://me:secret@127.0.0.1:9/clip.mp4")
    assert found.exit_code == 0, found.stderr
    assert gone.exit_code == 1
    assert "rtsp://me:***@127.0.0.1:9/1" in gone.stderr
    assert "http://me:***@127.0.0.1:9/clip.mp4" in file.stderr
    assert "secret" not in found.output + found.stderr + gone.stderr + file.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["camera:63"], 1, "no camera:63"),
        (["camera:63", "camera:64"], 2, "explained alone"),
        (["camera:63", "--format", "png"], 2, "--format is for images"),
        (["camera:63", "--out", "{new}.png"], 2, "cannot write a video"),
        (["camera:63", "--out", "{new}.mp4", "--topk", "2"], 2, "shows one class"),
        (["{image}", "--reconnect", "2"], 2, "--reconnect is for a video"),
        (["{image}", "--fps", "2"], 2, "--fps is for a video"),
        (["{new}.mp4", "--reconnect", "2"], 2, "--reconnect is for a live source"),
        (["camera:63", "--every", "2", "--fps", "2"], 2, "give one of them"),
        (["http://127.0.0.1:9/stream"], 1, "check the address"),
        (["http://127.0.0.1:9/clip.mp4"], 1, "check the address"),
    ],
)
def test_what_does_not_fit_is_refused(work, cli, tmp_path, arguments, code, says):
    places = {"image": work.data / "red" / "0.png", "new": tmp_path / "new"}
    found = cli("explain", work.named, *(a.format(**places) for a in arguments))
    assert found.exit_code == code, found.stderr
    assert says in found.stderr
    assert found.stdout == ""
    assert list(tmp_path.iterdir()) == []
