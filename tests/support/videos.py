"""Videos of any kind, made by PyAV: times, codecs, sound, display matrices."""

from __future__ import annotations

import struct
from fractions import Fraction

import numpy as np

SIZE = (64, 48)
UNEVEN = (0.0, 0.1, 0.15, 0.4, 0.41, 0.8, 1.3, 1.35, 1.9, 2.0)
"""Times of frames at no rate."""


def frame(number, size=SIZE):
    """A grey that tells the frame's number, and a red square at the upper left."""
    image = np.full((size[1], size[0], 3), 60 + 7 * number, np.uint8)
    image[: size[1] // 3, : size[1] // 3] = (250, 10, 10)
    return image


def numbers(images):
    return [round((int(np.median(one)) - 60) / 7) for one in images]


def write_clip(
    path,
    times=UNEVEN,
    codec="libx264",
    *,
    size=SIZE,
    rate=30,
    pixels="yuv420p",
    sound=None,
    options=None,
    base=Fraction(1, 90000),
    **context,
):
    """Writes frames at their times, in seconds; with a tone, if a codec for `sound` is named."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = base
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        audio = None if sound is None else container.add_stream(sound, rate=48000, layout="mono")
        for number, time in enumerate(times):
            made = av.VideoFrame.from_ndarray(frame(number, size), "rgb24")
            made.pts, made.time_base = round(time / base), base
            container.mux(stream.encode(made))
        container.mux(stream.encode())
        if audio is not None:
            _write_tone(container, audio, max(times) + 0.1)
    return path


def _write_tone(container, audio, seconds):
    import av

    for start in range(0, int(seconds * 48000), 960):
        wave = np.sin(np.arange(start, start + 960) * (440 * 2 * np.pi / 48000)) * 8000
        made = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], "s16", "mono")
        made.sample_rate, made.pts, made.time_base = 48000, start, Fraction(1, 48000)
        container.mux(audio.encode(made))
    container.mux(audio.encode())


def times_of(path):
    """The times of a file's frames, by PyAV, and the frames."""
    import av

    with av.open(str(path)) as container:
        found = [(float(f.time), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    return [time for time, _ in found], [image for _, image in found]


def sound_of(path):
    """The packets of a file's sound: times in seconds from the first, and bytes."""
    import av

    with av.open(str(path)) as container:
        packets = [p for p in container.demux(audio=0) if p.size and p.pts is not None]
        return [round(float(p.pts * p.time_base), 3) for p in packets], [bytes(p) for p in packets]


def with_matrix(data, matrix, box=b"tkhd"):
    """The bytes of an MP4 file with another display matrix, given as a, b, c, d."""
    at = data.index(box)
    long = data[at + 4] == 1
    times = {b"tkhd": (24, 36), b"mvhd": (20, 32)}[box][long]
    start = at + 4 + times + 16
    a, b, c, d = (round(value * 65536) for value in matrix)
    made = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return data[:start] + made + data[start + 36 :]
