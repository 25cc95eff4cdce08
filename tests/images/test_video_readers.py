"""Videos as they are in the wild, by both readers: the same frames at the same, true times."""

from fractions import Fraction

import numpy as np
import pytest

from sigcam.core.errors import VideoError
from sigcam.images.video import VideoReader
from sigcam.images.video.frames import per_second
from tests.support.videos import SIZE, UNEVEN, frame, numbers, times_of, with_matrix, write_clip

av = pytest.importorskip("av")

READERS = ("pyav", "opencv")
X265 = {"x265-params": "log-level=0"}
TENTHS = tuple(number / 10 for number in range(10))


def read(path, reader):
    with VideoReader(path, reader=reader) as video:
        found = list(video.timed(lambda *_: True))
    assert video.read == len(found)
    return found, video


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("clip.mp4", "libx264", {}),
        ("clip.mkv", "libx264", {}),
        ("clip.ts", "libx264", {}),
        ("clip.mov", "libx264", {"options": {"bf": "0"}}),
        ("browser.webm", "libvpx", {"rate": 1000, "base": Fraction(1, 1000)}),
        ("clip.webm", "libvpx-vp9", {"base": Fraction(1, 1000)}),
    ],
)
def test_uneven_times(tmp_path, reader, name, codec, options):
    """What OpenCV and others say of rate and count is far off for all of these."""
    path = write_clip(tmp_path / name, codec=codec, **options)
    found, video = read(path, reader)
    assert [one.seconds for one in found] == pytest.approx(UNEVEN, abs=1e-3)
    assert [one.number for one in found] == list(range(10))
    assert numbers(one.image for one in found) == list(range(10))
    assert (video.problem, video.notes) == (None, [])
    truth = times_of(path)[0]
    assert [one.seconds for one in found] == pytest.approx(np.subtract(truth, truth[0]), abs=1e-6)
    assert video.fps is None or video.fps < 1000


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("sound", [None, "aac"])
def test_times_that_begin_later(tmp_path, reader, suffix, sound):
    later = [5 + time for time in UNEVEN]
    found, video = read(write_clip(tmp_path / f"clip{suffix}", later, sound=sound), reader)
    assert [one.seconds for one in found] == pytest.approx(UNEVEN, abs=1e-3)
    assert video.problem is None


@pytest.mark.parametrize("reader", READERS)
def test_an_edit_list_leaves_frames_out(tmp_path, reader):
    """A trimmed video's header counts frames that aren't shown: the file is whole."""
    path = write_clip(tmp_path / "clip.mp4", TENTHS, options={"bf": "0"}, rate=10)
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4
    assert int.from_bytes(data[at + 4 : at + 8], "big") == 1
    data[at + 12 : at + 16] = (3 * 9000).to_bytes(4, "big")  # begins at the fourth frame
    path.write_bytes(data)
    found, video = read(path, reader)
    assert numbers(one.image for one in found) == list(range(3, 10))
    assert [one.seconds for one in found] == pytest.approx(TENTHS[:7], abs=1e-3)
    assert video.problem is None


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("reader", READERS)
def test_seconds_of_every_nth_frame(tmp_path, reader, every):
    path = write_clip(tmp_path / "clip.mp4")
    with VideoReader(path, reader=reader) as video:
        found = list(video.timed(lambda number, _: number % every == 0))
    assert [one.number for one in found] == list(range(0, 10, every))
    assert [one.seconds for one in found] == pytest.approx(UNEVEN[::every], abs=1e-3)


@pytest.mark.parametrize("reader", READERS)
def test_so_many_frames_a_second(tmp_path, reader):
    path = write_clip(tmp_path / "clip.mp4")
    with VideoReader(path, reader=reader) as video:
        found = list(video.timed(per_second(2)))
    assert [one.seconds for one in found] == pytest.approx([0, 0.8, 1.3, 1.9, 2.0], abs=1e-3)


def test_so_many_frames_a_second_of_rounded_times():
    """Containers count in milliseconds: the second of three frames a second comes at 0.333."""
    times = [round(number / 30, 3) for number in range(90)]
    for rate, count in ((1, 3), (3, 9), (10, 30), (15, 45), (30, 90), (60, 90)):
        wanted = per_second(rate)
        assert sum(wanted(0, one) for one in times) == count


def turned(image, matrix):
    """The definition: each point (x, y) of the image goes to (a x + c y, b x + d y)."""
    a, b, c, d = matrix
    height, width = image.shape[:2]
    places = {
        (a * x + c * y, b * x + d * y): image[y, x] for y in range(height) for x in range(width)
    }
    left = min(x for x, _ in places)
    top = min(y for _, y in places)
    new_width = max(x for x, _ in places) - left + 1
    new_height = max(y for _, y in places) - top + 1
    made = np.empty((new_height, new_width, 3), np.uint8)
    for (x, y), value in places.items():
        made[y - top, x - left] = value
    return made


MATRICES = [
    (1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0),
    (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0),
]  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("matrix", MATRICES)
def test_the_eight_orientations(tmp_path, reader, suffix, matrix):
    path = write_clip(tmp_path / f"clip{suffix}", TENTHS[:2])
    stored = read(path, reader)[0][0].image
    path.write_bytes(with_matrix(path.read_bytes(), matrix))
    found, video = read(path, reader)
    wanted = turned(stored, matrix)
    assert (video.height, video.width) == wanted.shape[:2]
    assert np.array_equal(found[0].image, wanted)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_both_readers_turn_alike(tmp_path, suffix, degrees, mirrored):
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV can't write orientations")
    path = tmp_path / f"clip{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.set_display_rotation(degrees, hflip=mirrored)
        made = av.VideoFrame.from_ndarray(frame(1), "rgb24")
        made.pts = 0
        container.mux(stream.encode(made))
        container.mux(stream.encode())
    (first, _), (second, _) = (read(path, reader) for reader in READERS)
    assert np.array_equal(first[0].image, second[0].image)
    red = first[0].image[:, :, 0].astype(int) - first[0].image[:, :, 1] > 100
    right = red[:, red.shape[1] // 2 :].sum() > red.sum() / 2
    below = red[red.shape[0] // 2 :].sum() > red.sum() / 2
    # The square at the upper left goes around against the clock; then it is mirrored.
    wanted = {0: (0, 0), 90: (0, 1), 180: (1, 1), 270: (1, 0)}[degrees]
    assert (right != mirrored, below) == (bool(wanted[0]), bool(wanted[1]))


@pytest.mark.parametrize("reader", READERS)
def test_the_movie_is_turned_too(tmp_path, reader):
    path = write_clip(tmp_path / "clip.mp4", TENTHS[:2])
    stored = read(path, reader)[0][0].image
    data = with_matrix(path.read_bytes(), (0, 1, -1, 0))
    path.write_bytes(with_matrix(data, (-1, 0, 0, 1), b"mvhd"))
    found, _ = read(path, reader)
    assert np.array_equal(found[0].image, turned(turned(stored, (0, 1, -1, 0)), (-1, 0, 0, 1)))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("aspect", "matrix", "size"),
    [
        (Fraction(4, 3), (1, 0, 0, 1), (85, 48)),
        (Fraction(1, 2), (1, 0, 0, 1), (64, 96)),
        (Fraction(3, 2), (0, 1, -1, 0), (48, 96)),
    ],
)
def test_pixels_that_are_not_square(tmp_path, reader, aspect, matrix, size):
    path = write_clip(tmp_path / "clip.mp4", TENTHS[:3], sample_aspect_ratio=aspect)
    path.write_bytes(with_matrix(path.read_bytes(), matrix))
    found, video = read(path, reader)
    assert (video.width, video.height) == size == found[0].image.shape[1::-1]
    assert f"its pixels are {aspect.numerator}:{aspect.denominator}" in video.notes[0]
    assert f"{size[0]} x {size[1]} square ones" in video.notes[0]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("hevc.mp4", "libx265", {"pixels": "yuv420p10le", "options": X265}),
        ("prores.mov", "prores_ks", {"pixels": "yuv422p10le", "base": Fraction(1, 1000)}),
        ("odd.mkv", "ffv1", {"pixels": "yuv444p", "size": (65, 49), "base": Fraction(1, 1000)}),
        ("mjpeg.avi", "mjpeg", {"pixels": "yuvj420p", "rate": 10, "base": Fraction(1, 10)}),
        ("old.mpg", "mpeg2video", {"rate": 25, "base": Fraction(1, 25)}),
        ("flash.flv", "flv", {"rate": 10, "base": Fraction(1, 10)}),
        ("media.wmv", "wmv2", {"rate": 10, "base": Fraction(1, 10)}),
        ("hd.mp4", "libx264", {"colorspace": 1, "color_primaries": 1, "color_trc": 1}),
    ],
)  # fmt: skip
def test_both_readers_give_the_same(tmp_path, name, codec, options):
    times = [number / 25 for number in range(10)] if name.endswith("mpg") else TENTHS
    path = write_clip(tmp_path / name, times, codec, **options)
    (first, one), (second, two) = (read(path, reader) for reader in READERS)
    assert [frame.seconds for frame in first] == [frame.seconds for frame in second]
    assert (one.width, one.height) == (two.width, two.height) == options.get("size", SIZE)
    assert (one.problem, two.problem) == (None, None)
    # Of 10 bits, what is left over is dithered or not.
    for a, b in zip(first, second, strict=True):
        assert np.abs(a.image.astype(int) - b.image).max() <= 4
    assert numbers(frame.image for frame in first) == list(range(10))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("primaries", "transfer", "says"),
    [(9, 16, "it is HDR (PQ)"), (9, 14, "it has the wide colours")],
)
def test_wide_colours_are_told(tmp_path, primaries, transfer, says):
    """Both readers bring them to the ordinary range, with the tables of FFmpeg's scaler."""
    path = write_clip(
        tmp_path / "clip.mp4", TENTHS[:3], "libx265", pixels="yuv420p10le", colorspace=9,
        color_primaries=primaries, color_trc=transfer, options=X265,
    )  # fmt: skip
    (first, one), (second, two) = (read(path, reader) for reader in READERS)
    assert one.notes == two.notes
    assert one.notes[0].startswith(says)
    for a, b in zip(first, second, strict=True):
        assert np.abs(a.image.astype(int) - b.image).max() <= 4
    assert np.abs(first[0].image[4:12, 4:12].astype(int) - (250, 10, 10)).max() > 15


def test_interlaced_frames_are_told(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", TENTHS, options={"x264-params": "interlaced=1"})
    _, video = read(path, "pyav")
    assert "interlaced" in video.notes[0]


def test_codecs_that_opencv_lacks_are_named(tmp_path, capfd):
    path = write_clip(tmp_path / "clip.mp4", TENTHS, "libsvtav1", base=Fraction(1, 1000))
    webm = write_clip(tmp_path / "clip.webm", TENTHS, "libsvtav1", base=Fraction(1, 1000))
    capfd.readouterr()
    for one in (path, webm):
        with pytest.raises(VideoError, match=r"encoded as AV1, .*sigcam\[video\].*ffmpeg -i"):
            VideoReader(one, reader="opencv")
        assert len(read(one, "pyav")[0]) == 10
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("reader", READERS)
def test_a_codec_that_nobody_knows_is_named(tmp_path, reader):
    path = write_clip(tmp_path / "clip.mp4", TENTHS)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1"))
    with pytest.raises(VideoError, match=r"clip\.mp4 is encoded as zzz1, which .*convert it"):
        VideoReader(path, reader=reader)


def write_with_cover(path, *, video, cover=True):
    with av.open(str(path), "w") as container:
        streams = []
        if cover:
            stream = container.add_stream("mjpeg", rate=1)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
            stream.disposition = av.stream.Disposition.attached_pic
            streams.append((stream, [np.full((32, 32, 3), 99, np.uint8)]))
        if video:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
            streams.append((stream, [frame(number) for number in range(5)]))
        sound = container.add_stream("aac", rate=48000, layout="mono")
        for stream, images in streams:
            for number, image in enumerate(images):
                made = av.VideoFrame.from_ndarray(image, "rgb24")
                made.pts, made.time_base = number, 1 / Fraction(stream.average_rate)
                container.mux(stream.encode(made))
            container.mux(stream.encode())
        made = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        made.sample_rate, made.pts = 48000, 0
        container.mux(sound.encode(made))
        container.mux(sound.encode())
    return path


@pytest.mark.parametrize("reader", READERS)
def test_a_cover_is_no_video(tmp_path, reader):
    found, video = read(write_with_cover(tmp_path / "clip.mp4", video=True), reader)
    assert numbers(one.image for one in found) == list(range(5))
    assert (video.width, video.height) == SIZE
    for cover in (True, False):
        path = write_with_cover(tmp_path / "song.mp4", video=False, cover=cover)
        with pytest.raises(VideoError, match=r"song\.mp4 has no video, only sound"):
            VideoReader(path, reader=reader)


def test_several_video_streams_are_told(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for width, height in (SIZE, (128, 96)):
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        for stream in streams:
            for number in range(5):
                image = frame(number, (stream.width, stream.height))
                made = av.VideoFrame.from_ndarray(image, "rgb24")
                made.pts, made.time_base = number, Fraction(1, 10)
                container.mux(stream.encode(made))
            container.mux(stream.encode())
    found, video = read(path, "pyav")
    assert video.notes == ["it has 2 video streams; stream 0 is read"]
    assert found[0].image.shape == (48, 64, 3)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("name", "codec", "options", "part"),
    [
        ("clip.mkv", "mpeg4", {"base": Fraction(1, 10), "rate": 10}, 0.7),
        ("clip.webm", "libvpx", {"rate": 1000, "base": Fraction(1, 1000)}, 0.8),
        ("clip.avi", "mjpeg", {"pixels": "yuvj420p", "rate": 10, "base": Fraction(1, 10)}, 0.7),
        ("clip.wmv", "wmv2", {"rate": 10, "base": Fraction(1, 10), "size": (640, 480)}, 0.5),
    ],
)
def test_truncated_files_are_told(tmp_path, reader, name, codec, options, part):
    path = write_clip(tmp_path / name, TENTHS, codec, **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    found, video = read(path, reader)
    assert 0 < len(found) < 10
    assert f"ends after {len(found)}" in video.problem
    assert "truncated" in video.problem


@pytest.mark.parametrize("reader", READERS)
def test_a_truncated_mp4_whose_index_comes_first(tmp_path, reader):
    path, first = tmp_path / "clip.mp4", tmp_path / "first.mp4"
    write_clip(path, TENTHS, "mpeg4", base=Fraction(1, 10), rate=10)
    with (
        av.open(str(path)) as source,
        av.open(str(first), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert read(first, reader)[1].problem is None
    first.write_bytes(first.read_bytes()[:-200])
    found, video = read(first, reader)
    assert 0 < len(found) < 10
    assert f"ends after {len(found)} of the 10 frames that its header promises" in video.problem
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(VideoError, match="truncated, its header promises"):
        VideoReader(path, reader=reader)


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_frame_is_told(tmp_path, reader):
    options = {"pixels": "yuvj420p", "rate": 10, "base": Fraction(1, 10)}
    path = write_clip(tmp_path / "clip.avi", TENTHS, "mjpeg", **options)
    data = bytearray(path.read_bytes())
    at = -1
    for _ in range(5):
        at = data.index(b"\xff\xd8\xff", at + 1)
    data[at : at + 1000] = bytes(1000)
    path.write_bytes(data)
    found, video = read(path, reader)
    assert numbers(one.image for one in found) == [0, 1, 2, 3, 6, 7, 8, 9]
    assert "is damaged: 1 pieces of it could not be decoded, 8 frames could" in video.problem


@pytest.mark.parametrize("reader", READERS)
def test_joined_clips_of_two_sizes(tmp_path, reader):
    """As a player does, what follows is scaled to the first frame's size."""
    write_clip(tmp_path / "a.ts", TENTHS)
    later = [1 + time for time in TENTHS]
    write_clip(tmp_path / "b.ts", later, size=(96, 80))
    path = tmp_path / "both.ts"
    path.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    found, video = read(path, reader)
    assert {one.image.shape for one in found} == {(48, 64, 3)}
    assert len(found) >= 18
    if reader == "pyav":  # OpenCV doesn't tell
        assert "its size changes at frame 10, from 64 x 48 to 96 x 80" in video.notes[0]


@pytest.mark.parametrize("reader", READERS)
def test_changed_bytes_end_in_frames_or_in_an_error_of_ours(tmp_path, reader):
    random = np.random.default_rng(3)
    whole = [write_clip(tmp_path / name) for name in ("clip.mp4", "clip.mkv", "clip.ts")]
    ends = {"read": 0, "refused": 0}
    for _ in range(120):
        source = whole[random.integers(len(whole))]
        data = np.frombuffer(source.read_bytes(), np.uint8).copy()
        for at in random.integers(0, len(data), random.choice((1, 4, 16))):
            data[at] = random.integers(256)
        changed = tmp_path / f"changed{source.suffix}"
        changed.write_bytes(data[: random.integers(len(data) // 2, len(data) + 1)].tobytes())
        try:
            assert all(one.image.dtype == np.uint8 for one in read(changed, reader)[0])
            ends["read"] += 1
        except VideoError as exc:
            assert changed.name in str(exc)
            ends["refused"] += 1
    assert min(ends.values()) > 5
