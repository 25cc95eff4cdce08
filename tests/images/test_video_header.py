"""What a video file says of itself, in made-up bytes."""

import struct

import pytest

from sigcam.images.video.header import read_header


def box(name, inside=b"", size=None):
    return struct.pack(">I4s", 8 + len(inside) if size is None else size, name) + inside


def large(name, inside):
    return struct.pack(">I4sQ", 1, name, 16 + len(inside)) + inside


def track(kind=b"vide", code=b"av01", version=0):
    times = bytes(36 if version else 24)[1:]
    matrix = struct.pack(">9i", 0, 65536, 0, 65536, 0, 0, 0, 0, 1 << 30)
    header = bytes([version]) + times + bytes(16) + matrix + bytes(8)
    handler = bytes(8) + kind + bytes(12)
    entry = bytes(8) + box(code, bytes(78) + box(b"colr", b"nclx" + struct.pack(">3H", 9, 16, 9)))
    media = box(b"hdlr", handler) + box(b"minf", box(b"stbl", box(b"stsd", entry)))
    return box(b"trak", box(b"tkhd", header) + box(b"mdia", media))


def written(tmp_path, data):
    path = tmp_path / "clip"
    path.write_bytes(data)
    return read_header(path)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("first", [True, False])
def test_an_mp4(tmp_path, version, first):
    index = box(b"moov", track(b"soun", b"mp4a") + track(version=version))
    parts = [index, large(b"mdat", bytes(1000))]
    data = box(b"ftyp", b"isom" + bytes(4)) + b"".join(parts if first else parts[::-1])
    found = written(tmp_path, data)
    assert (found.kind, found.promised, found.cut) == ("mp4", len(data), None)
    assert (found.codec, found.has_video, found.colours) == ("AV1", True, (9, 16))
    assert found.matrix == (0, 1, 1, 0)
    cut = written(tmp_path, data[:-100])
    assert cut.cut == f"its header promises {len(data):,} bytes, and it has {len(data) - 100:,}"
    assert cut.indexed is first


def test_an_mp4_that_ends_otherwise(tmp_path):
    start = box(b"ftyp", b"isom" + bytes(4)) + box(b"moov", track())
    assert written(tmp_path, start + box(b"mdat", bytes(500), size=0)).cut is None
    assert written(tmp_path, start + box(b"mdat", bytes(500)) + bytes(64)).cut is None
    assert (
        written(tmp_path, box(b"ftyp", bytes(8)) + box(b"moov", track(b"soun"))).has_video is False
    )
    assert not written(tmp_path, box(b"ftyp", bytes(8)) + box(b"mdat", bytes(9))).indexed


def matroska(size, data):
    return b"\x1aE\xdf\xa3\x84\x42\x86\x81\x01\x18S\x80g" + size + data


@pytest.mark.parametrize(
    ("size", "promised"),
    [
        (b"\x01" + (300).to_bytes(7, "big"), 13 + 8 + 300),
        (b"\x41\x2c", 13 + 2 + 300),
        (b"\x01" + b"\xff" * 7, None),
        (b"\xff", None),
    ],
)
def test_matroska(tmp_path, size, promised):
    data = b"\x86\x85V_VP9" + bytes(293)
    found = written(tmp_path, matroska(size, data))
    assert (found.kind, found.promised, found.cut) == ("matroska", promised, None)
    assert found.codec == "VP9"
    cut = written(tmp_path, matroska(size, data[:-1])).cut
    assert (cut is None) == (promised is None)


def test_avi(tmp_path):
    def riff(kind, count):
        return b"RIFF" + struct.pack("<I", count + 4) + kind + bytes(count)

    data = riff(b"AVI ", 100) + riff(b"AVIX", 50)
    assert written(tmp_path, data).cut is None
    assert written(tmp_path, data[:-10]).promised == len(data)
    # A recorder that never went back to write its sizes.
    assert written(tmp_path, b"RIFF" + bytes(4) + b"AVI " + bytes(99)).cut is None


@pytest.mark.parametrize("data", [b"", b"\x1aE\xdf\xa3", b"hello", bytes(64), b"\x47" * 400])
def test_what_says_nothing(tmp_path, data):
    found = written(tmp_path, data)
    assert (found.promised, found.cut, found.size) == (None, None, len(data))


def test_nonsense_never_hangs_or_fails(tmp_path):
    """Any piece of a file, and any byte of it changed, is read without an error of ours."""
    whole = box(b"ftyp", b"isom" + bytes(4)) + box(b"moov", track()) + box(b"mdat", bytes(40))
    for at in range(len(whole)):
        written(tmp_path, whole[:at])
        written(tmp_path, whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
