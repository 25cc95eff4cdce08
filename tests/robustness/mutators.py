"""Damage to bytes that works on any file: flipped, lost, doubled and foreign bytes."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

Mutator = Callable[[bytearray, random.Random, bytes], bytearray]


def _flip_bits(data: bytearray, rng: random.Random, _: bytes) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _set_bytes(data: bytearray, rng: random.Random, _: bytes) -> bytearray:
    """Sets a run of bytes to one value, or to noise."""
    at, size = rng.randrange(len(data)), rng.choice((1, 4, 16, 256, 4096))
    end = min(len(data), at + size)
    value = rng.choice((0, 0x7F, 0x80, 0xFF, None))
    run = rng.randbytes(end - at) if value is None else bytes([value]) * (end - at)
    data[at:end] = run
    return data


def _truncate(data: bytearray, rng: random.Random, _: bytes) -> bytearray:
    """Cuts the end off: anywhere, in the header, or just before the end."""
    size = len(data)
    return data[: rng.choice((rng.randrange(size), rng.randrange(min(size, 64)), size - 1))]


def _insert(data: bytearray, rng: random.Random, _: bytes) -> bytearray:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 16, 1000)))
    return data


def _remove(data: bytearray, rng: random.Random, _: bytes) -> bytearray:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 2, 16, 256, 4096))]
    return data


def _double(data: bytearray, rng: random.Random, _: bytes) -> bytearray:
    at = rng.randrange(len(data))
    piece = data[at : at + rng.choice((4, 64, 1024))]
    data[at:at] = piece * rng.choice((1, 1, 3, 50))
    return data


def _swap(data: bytearray, rng: random.Random, _: bytes) -> bytearray:
    """Exchanges two pieces, as blocks of a disk in the wrong order would."""
    size = max(1, len(data) // rng.choice((4, 8, 16)))
    one, two = (rng.randrange(0, max(1, len(data) - size)) for _ in range(2))
    data[one : one + size], data[two : two + size] = (
        data[two : two + size],
        data[one : one + size],
    )
    return data


def _change_length(data: bytearray, rng: random.Random, _: bytes) -> bytearray:
    """Writes a number where a length or a size may stand, most of which stand early."""
    form = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(form)
    if len(data) < size:
        return data
    reach = rng.choice((64, 512, len(data)))
    at = rng.randrange(max(1, min(reach, len(data)) - size + 1))
    top = (1 << 8 * size) - 1
    value = rng.choice((0, 1, top, top >> 1, (top >> 1) + 1, len(data), rng.randrange(top), 65535))
    struct.pack_into(form, data, at, value & top)
    return data


def _splice(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Begins as one file and goes on as another."""
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _append(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    return data + rng.choice((b"\0" * 100, rng.randbytes(1000), other))


BYTES: dict[str, Mutator] = {
    "flipped bits": _flip_bits,
    "overwritten": _set_bytes,
    "truncated": _truncate,
    "bytes inserted": _insert,
    "bytes removed": _remove,
    "bytes doubled": _double,
    "pieces exchanged": _swap,
    "a length changed": _change_length,
    "spliced with another": _splice,
    "more behind the end": _append,
}


def mutate_bytes(data: bytes, rng: random.Random, other: bytes) -> tuple[bytes, str]:
    """Damages bytes once, or now and then several times.

    Args:
        data: of a whole file.
        rng: what the damage follows from.
        other: another whole file of that kind.

    Returns:
        Other bytes than `data`, and what was done to them.
    """
    made, names = bytearray(data), []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not made:
            break
        name = rng.choice(tuple(BYTES))
        made = BYTES[name](made, rng, other)
        names.append(name)
    if bytes(made) == data:  # zeros over zeros, or a piece exchanged with itself
        made, names = bytearray(data[:-1]), ["truncated"]
    return bytes(made), ", ".join(names)
