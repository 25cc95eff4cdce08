"""Digests: what tells whether a file is still the one that was written.

Every file of ours that a model consists of carries its own digest as 64 hexadecimal digits: the
SHA-256 of the file's bytes, with these 64 digits read as zeros. A file can so be checked without
a second one beside it. `seal` fills the digits in when a file is written, and `digest_of`
computes what they should be.
"""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import BinaryIO

from sigcam.core.errors import ModelError

__all__ = [
    "BRANCH_DIGEST_FIELD", "BRANCH_DIGEST_KEY", "JSON_FIELD", "ZEROS", "check_branch_digest",
    "digest_of", "find_digest", "seal",
]  # fmt: skip

ZEROS = "0" * 64
"""What stands in the place of a digest while it is computed."""

JSON_FIELD = b'"digest": "'
"""What stands before the digits in the JSON of a spec or a sidecar."""

BRANCH_DIGEST_KEY = "sigcam_digest"
"""The metadata entry of a branch file that holds its digest."""

BRANCH_DIGEST_FIELD = f'"{BRANCH_DIGEST_KEY}":"'.encode()
"""What stands before the digits in the header of a branch file, as safetensors writes it."""

_BLOCK = 1 << 20


def find_digest(data: bytes, field: bytes = JSON_FIELD) -> int | None:
    """Returns where the digits of a digest begin in JSON; None where there is none.

    Args:
        data: the JSON. Within its strings, quotation marks have a backslash before them, so that
            no name of a class can be taken for the field.
        field: what stands before the digits.

    Example:
        >>> find_digest(b'{"digest": "' + b"5" * 64 + b'"}')
        12
        >>> find_digest(b'{"digest": null}') is None
        True
    """
    found = re.search(re.escape(field) + rb'[0-9a-f]{64}"', data)
    return None if found is None else found.start() + len(field)


def digest_of(stream: BinaryIO, blank: int | None = None) -> str:
    """Computes the SHA-256 of a stream from its beginning, in hexadecimal.

    Args:
        stream: a file that is open for reading bytes.
        blank: where 64 bytes begin that count as zeros (the digits "0"); None for none.

    Example:
        >>> digest_of(io.BytesIO(b"abc"))[:16]
        'ba7816bf8f01cfea'
        >>> digits = io.BytesIO(b"begin" + b"7" * 64)
        >>> digest_of(digits, blank=5) == digest_of(io.BytesIO(b"begin" + b"0" * 64))
        True
    """
    total = hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK))
    stream.seek(0)
    position = 0
    while True:
        # Blocks end where the digits begin and end, so that these are a block of their own.
        left = _BLOCK
        if blank is not None and position < blank + len(ZEROS):
            left = min(left, (blank if position < blank else blank + len(ZEROS)) - position)
        size = stream.readinto(buffer[:left])  # type: ignore[attr-defined]
        if not size:
            return total.hexdigest()
        inside = blank is not None and blank <= position < blank + len(ZEROS)
        total.update(b"0" * size if inside else buffer[:size])
        position += size


def seal(data: bytes, at: int) -> bytes:
    """Fills in the digest of a file that is about to be written.

    Args:
        data: the file's bytes, with `ZEROS` in the digest's place.
        at: where the zeros begin.

    Returns:
        The bytes to write.

    Raises:
        ValueError: there are no zeros at that place.

    Example:
        >>> sealed = seal(b"begin" + ZEROS.encode(), at=5)
        >>> sealed[5:].decode() == digest_of(io.BytesIO(sealed), blank=5)
        True
    """
    end = at + len(ZEROS)
    if data[at:end] != ZEROS.encode():
        raise ValueError("there must be zeros where the digest goes")
    return b"".join((data[:at], hashlib.sha256(data).hexdigest().encode(), data[end:]))


def check_branch_digest(data: bytes, path: Path) -> str:
    """Checks that the bytes of a branch file are those that were written; returns the digest.

    Raises:
        ModelError: they aren't, or there is no digest; says what to do.

    Example:
        path = Path("branch.safetensors")
        check_branch_digest(path.read_bytes(), path)
    """
    place = find_digest(data, BRANCH_DIGEST_FIELD)
    if place is None:
        raise ModelError(f"{path} carries no digest of a branch file; train the branch again")
    written = data[place : place + len(ZEROS)].decode()
    found = digest_of(io.BytesIO(data), place)
    if found != written:
        raise ModelError(
            f"{path} is not what was written: its digest is {written[:12]}..., its bytes give "
            f"{found[:12]}...; copy it again, or train the branch again"
        )
    return written
