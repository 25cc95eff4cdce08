"""Damage that keeps a file's form: wrong types, huge numbers, lost and doubled parts of it.

Flipped bytes seldom come past a parser or a checksum. These mutators take the file apart, change
one part and put it together again, with the lengths and checksums that it needs.
"""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sigcam.core.digest import JSON_FIELD, ZEROS, find_digest, seal
from tests.robustness.mutators import mutate_bytes

LONG_TEXT = 10_000_000
DEEP = 10_000

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 255, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e-320, 1e308,
    float("nan"), float("inf"), "", "0", "NaN", "a\0b", "\ud800", "\x1b[2J", "../../etc/passwd",
    [], {}, [None], [[1]], {"a": 1}, [1, 2, 3, 4], "topk", "sigmoid", "crop",
)  # fmt: skip
"""What may stand where something else should."""


def strange_value(rng: random.Random) -> Any:
    """Returns a value that a field seldom expects; now and then a very long text."""
    return "x" * LONG_TEXT if rng.random() < 0.004 else rng.choice(_VALUES)


def mutate_json(text: str, rng: random.Random) -> tuple[str, str]:
    """Changes one value of a JSON text, or several.

    Returns:
        The text, and what was done.
    """
    root, names = json.loads(text), []
    for _ in range(rng.choice((1, 1, 1, 3))):
        root, name = _change_node(root, rng)
        names.append(name)
    made = json.dumps(root, ensure_ascii=rng.random() < 0.9)
    if _DEEP_MARK in made:
        opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
        # Without the brackets that close it, it is deep and no JSON besides.
        end = closing * DEEP if rng.random() < 0.8 else ""
        made = made.replace(f'"{_DEEP_MARK}"', opening * DEEP + "1" + end)
    if _DIGITS_MARK in made:
        made = made.replace(f'"{_DIGITS_MARK}"', "9" * rng.choice((400, 5000)))
    return made, ", ".join(names)


_DEEP_MARK, _DIGITS_MARK = "a deep nest", "a number of many digits"


def _change_node(root: Any, rng: random.Random) -> tuple[Any, str]:
    places = list(_places(root))
    if not places:
        return strange_value(rng), "value replaced"
    holder, key = rng.choice(places)
    name = rng.choice(("replaced", "replaced", "replaced", "removed", "doubled", "deep", "digits"))
    if name == "removed":
        del holder[key]
    elif name == "doubled":
        if isinstance(holder, list):
            holder.insert(key, holder[key])
        else:
            holder[f"{key}2"] = holder[key]
    elif name in ("deep", "digits"):
        holder[key] = _DEEP_MARK if name == "deep" else _DIGITS_MARK
    else:
        holder[key] = strange_value(rng)
    return root, f"value {name}"


def _places(root: Any) -> Iterator[tuple[Any, Any]]:
    """Yields every holder of a value and its key."""
    if isinstance(root, dict):
        keys: Sequence[Any] = list(root)
    elif isinstance(root, list):
        keys = range(len(root))
    else:
        return
    for key in keys:
        yield root, key
        yield from _places(root[key])


def mutate_xml(text: str, rng: random.Random) -> tuple[str, str]:
    """Changes one element of an XML text.

    Returns:
        The text, and what was done.
    """
    elements = list(re.finditer(r"<(\w+)>([^<]*)</\1>", text))
    one = rng.choice(elements)
    tag, content = one.groups()
    name, made = rng.choice(
        (
            ("text replaced", f"<{tag}>{_plain(strange_value(rng))}</{tag}>"),
            ("text replaced", f"<{tag}>{_plain(strange_value(rng))}</{tag}>"),
            ("removed", ""),
            ("doubled", one.group() * 2),
            ("renamed", f"<{tag}x>{content}</{tag}x>"),
            ("not closed", f"<{tag}>{content}"),
            ("nested", f"<{tag}>" * DEEP + content + f"</{tag}>" * DEEP),
            ("entity", f"<{tag}>&a;</{tag}>"),
            ("attributes", f"<{tag} {'a' * 70000}='1'>{content}</{tag}>"),
            ("comments", one.group() + "<!-- x -->" * 20_000),
        )
    )
    text = text[: one.start()] + made + text[one.end() :]
    if name == "entity":
        layers = "".join(
            f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("hgfedcb", "gfedcba", strict=True)
        )
        text = f'<!DOCTYPE x [<!ENTITY h "ha">{layers}]>' + text
    if rng.random() < 0.1:
        code = rng.choice(("utf-16", "latin-1", "nonsense", "utf-7"))
        text = f'<?xml version="1.0" encoding="{code}"?>' + text
        name += f", encoding {code}"
    return text, f"element {name}"


def mutate_table(text: str, rng: random.Random, separator: str = ",") -> tuple[str, str]:
    """Changes a cell or a line of a text with a record to a line.

    Returns:
        The text, and what was done.
    """
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    cells = lines[at].split(separator)
    cell = rng.randrange(len(cells))
    name = rng.choice(
        ("cell replaced", "cell replaced", "cell removed", "cell added", "line removed",
         "line doubled", "lines exchanged", "quote", "blanks", "byte order mark", "line ends")
    )  # fmt: skip
    if name == "cell replaced":
        cells[cell] = _plain(strange_value(rng))
    elif name == "cell removed":
        del cells[cell]
    elif name == "cell added":
        cells.insert(cell, _plain(strange_value(rng)))
    elif name == "quote":
        cells[cell] = '"' + cells[cell]
    elif name == "blanks":
        cells[cell] = f"\t {cells[cell]}  \v"
    lines[at] = separator.join(cells)
    if name == "line removed":
        del lines[at]
    elif name == "line doubled":
        lines.insert(at, lines[at])
    elif name == "lines exchanged":
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    made = rng.choice(("\n", "\r", "\r\n", "\0", "\x85")).join(lines)
    made = made if name == "line ends" else "\n".join(lines) + "\n"
    return ("\ufeff" if name == "byte order mark" else "") + made, name


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "replace").decode()


def sealed_again(data: bytes, field: bytes = JSON_FIELD) -> bytes:
    """Makes the digest of damaged bytes fit them, so that what reads them is tried, too."""
    at = find_digest(data, field)
    if at is None:
        return data
    end = at + len(ZEROS)
    return seal(data[:at] + ZEROS.encode() + data[end:], at)


def mutate_safetensors(data: bytes, rng: random.Random, entry: str = "") -> tuple[bytes, str]:
    """Changes the header of a safetensors file, whose length is put right.

    Args:
        data: the file.
        rng: what the damage follows from.
        entry: a metadata entry that is JSON, in which something is changed instead.

    Returns:
        The file, and what was done.
    """
    (size,) = struct.unpack_from("<Q", data)
    header = data[8 : 8 + size].decode()
    if entry:
        parsed = json.loads(header)
        parsed["__metadata__"][entry], done = mutate_json(parsed["__metadata__"][entry], rng)
        header = json.dumps(parsed, separators=(",", ":"))
    else:
        header, done = mutate_json(header, rng)
    made = header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(made)) + made + data[8 + size :], f"header: {done}"


def mutate_protobuf(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Changes a field of a protobuf message, at any depth; the lengths around it are put right.

    Returns:
        The message, and what was done.
    """
    fields = _fields(data)
    if not fields:
        return rng.randbytes(8), "field filled"
    at = rng.randrange(len(fields))
    number, wire, value = fields[at]
    inside = isinstance(value, bytes) and len(value) > 2 and _fields(value)
    if inside and rng.random() < 0.85:
        made, name = mutate_protobuf(value, rng)
        fields[at] = (number, wire, made)
        return _joined(fields), name
    name = rng.choice(("changed", "changed", "changed", "removed", "doubled", "renumbered"))
    if name == "removed":
        del fields[at]
    elif name == "doubled":
        fields.insert(at, fields[at])
    elif name == "renumbered":
        fields[at] = (rng.randrange(1, 30), wire, value)
    elif isinstance(value, bytes):
        fields[at] = (number, wire, mutate_bytes(value or b"x", rng, b"other")[0])
    else:
        value = rng.choice((0, 1, 7, 2**31, 2**63, 2**64 - 1, value + 1))
        fields[at] = (
            number,
            wire,
            value if wire == 0 else value % (1 << (64 if wire == 1 else 32)),
        )
    return _joined(fields), f"field {name}"


_Field = tuple[int, int, "int | bytes"]


def _fields(data: bytes) -> list[_Field]:
    """Reads a message; empty where the bytes are none."""
    found: list[_Field] = []
    at = 0
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            number, wire = tag >> 3, tag & 7
            value: int | bytes
            if wire == 0:
                value, at = _varint(data, at)
            elif wire == 2:
                size, at = _varint(data, at)
                value, at = data[at : at + size], at + size
            elif wire in (1, 5):
                (value,) = struct.unpack_from("<Q" if wire == 1 else "<I", data, at)
                at += 8 if wire == 1 else 4
            else:
                return []
            if at > len(data) or not number:
                return []
            found.append((number, wire, value))
    except (IndexError, struct.error):
        return []
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _joined(fields: list[_Field]) -> bytes:
    made = bytearray()
    for number, wire, value in fields:
        made += _as_varint(number << 3 | wire)
        if isinstance(value, bytes):
            made += _as_varint(len(value)) + value
        elif wire == 0:
            made += _as_varint(value)
        else:
            made += struct.pack("<Q" if wire == 1 else "<I", value)
    return bytes(made)


def _as_varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def mutate_zip(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Changes an entry of a zip archive, as `torch.save` writes them; sums are put right.

    Returns:
        The archive, and what was done.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    at = rng.randrange(len(entries))
    entry, content = entries[at]
    name = rng.choice(("content", "content", "removed", "doubled", "renamed", "compressed", "bomb"))
    if name == "content":
        entries[at] = (entry, mutate_bytes(content or b"x", rng, entries[0][1])[0])
    elif name == "removed":
        del entries[at]
    elif name == "doubled":
        entries.append((entry + "x", content))
    elif name == "renamed":
        entries[at] = ("../" + entry, content)
    elif name == "bomb":
        entries[at] = (entry, bytes(50_000_000))
    made = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if name in ("compressed", "bomb") else zipfile.ZIP_STORED
    with zipfile.ZipFile(made, "w", kind) as archive:
        for entry, content in entries:
            archive.writestr(zipfile.ZipInfo(entry), content, kind)
    return made.getvalue(), f"entry {name}"


Part = tuple[bytes, bytes]
"""A part of an image file: its kind and its content."""


def _png_parts(data: bytes) -> list[Part]:
    at, found = 8, []
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def _png(parts: list[Part]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


def _webp_parts(data: bytes) -> list[Part]:
    at, found = 12, []
    while at + 8 <= len(data):
        (size,) = struct.unpack_from("<I", data, at + 4)
        found.append((data[at : at + 4], data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    return found


def _webp(parts: list[Part]) -> bytes:
    body = b"".join(
        kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for kind, body in parts
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _jpeg_parts(data: bytes) -> list[Part]:
    """Returns the segments before the first scan, and the rest as a part of its own."""
    at, found = 2, []
    while data[at + 1] != 0xDA:
        (size,) = struct.unpack_from(">H", data, at + 2)
        found.append((data[at : at + 2], data[at + 4 : at + 2 + size]))
        at += 2 + size
    return [*found, (b"", data[at:])]


def _jpeg(parts: list[Part]) -> bytes:
    return b"\xff\xd8" + b"".join(
        kind + struct.pack(">H", len(body[:65533]) + 2) + body[:65533] if kind else body
        for kind, body in parts
    )


def _box_parts(data: bytes) -> list[Part]:
    """Returns the boxes of an AVIF or JPEG 2000 file."""
    at, found = 0, []
    while at + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        size = size if size >= 8 else len(data) - at
        found.append((data[at + 4 : at + 8], data[at + 8 : at + size]))
        at += size
    return found


def _boxes(parts: list[Part]) -> bytes:
    return b"".join(struct.pack(">I", len(body) + 8) + kind + body for kind, body in parts)


_FORMS: dict[str, tuple[Callable[[bytes], list[Part]], Callable[[list[Part]], bytes]]] = {
    "PNG": (_png_parts, _png),
    "WebP": (_webp_parts, _webp),
    "JPEG": (_jpeg_parts, _jpeg),
    "AVIF": (_box_parts, _boxes),
    "JPEG 2000": (_box_parts, _boxes),
}


def mutate_parts(data: bytes, rng: random.Random, form: str) -> tuple[bytes, str]:
    """Changes a chunk, segment or box of an image file; lengths and sums are put right.

    Returns:
        The file, and what was done.
    """
    apart, together = _FORMS[form]
    parts = apart(data)
    at = rng.randrange(len(parts))
    kind, body = parts[at]
    name = rng.choice(("changed", "changed", "changed", "removed", "doubled", "moved", "emptied"))
    if name == "changed":
        parts[at] = (kind, mutate_bytes(body or b"x", rng, parts[-1][1])[0])
    elif name == "removed":
        del parts[at]
    elif name == "doubled":
        parts[at:at] = [parts[at]] * rng.choice((1, 2, 1000))
    elif name == "moved":
        parts.insert(rng.randrange(len(parts)), parts.pop(at))
    else:
        parts[at] = (kind, b"")
    return together(parts), f"part {name}"


def huge_size(data: bytes, rng: random.Random, form: str) -> tuple[bytes, str]:
    """Declares a size that the file doesn't have: a small file that asks for much memory.

    Returns:
        The file, and what was done; damaged bytes where the form's size isn't known here.
    """
    width, height = rng.choice(
        ((13_000, 13_000), (65_535, 2_700), (60_000, 60_000), (2**31 - 1, 1), (1, 178_000_000),
         (2**32 - 1, 2**32 - 1), (0, 0), (16_000, 1))
    )  # fmt: skip
    made = bytearray(data)
    if form == "PNG":
        parts = _png_parts(data)
        head = struct.pack(">II", width, height) + parts[0][1][8:]
        return _png([(parts[0][0], head), *parts[1:]]), "huge size"
    place = {"GIF": ("<HH", 6), "BMP": ("<II", 18)}.get(form)
    if form == "JPEG":
        frame = re.search(rb"\xff[\xc0-\xc2]..\x08", data, re.DOTALL)
        if frame:
            struct.pack_into(">HH", made, frame.end(), height % 65536, width % 65536)
            return bytes(made), "huge size"
    elif form == "TIFF":
        for tag, value in ((256, width), (257, height)):
            _set_tiff_tag(made, tag, value)
        return bytes(made), "huge size"
    elif form == "NPY":
        shape = f"({height}, {width}, 3)".encode()
        return re.sub(rb"\([^)]*\)", shape, data, count=1), "huge size"
    elif form == "PPM":
        return re.sub(rb"\d+ \d+", f"{width} {height}".encode(), data, count=1), "huge size"
    elif place:
        form_of, at = place
        top = 65536 if form_of == "<HH" else 2**32
        struct.pack_into(form_of, made, at, width % top, height % top)
        return bytes(made), "huge size"
    return mutate_bytes(data, rng, data)


def mutate_tiff(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Changes an entry of a TIFF's first directory: tag, type, count or value.

    Returns:
        The file, and what was done.
    """
    made = bytearray(data)
    entries = list(_tiff_entries(made))
    if not entries:
        return mutate_bytes(data, rng, data)
    order, at = rng.choice(entries)
    part = rng.choice(("tag", "type", "count", "value"))
    form, offset = {"tag": ("H", 0), "type": ("H", 2), "count": ("I", 4), "value": ("I", 8)}[part]
    top = 65535 if form == "H" else 2**32 - 1
    value = rng.choice((0, 1, 2, 3, 8, 257, top, top // 2, len(data), rng.randrange(top)))
    struct.pack_into(order + form, made, at + offset, min(value, top))
    return bytes(made), f"{part} of a tag"


def _tiff_entries(data: bytearray) -> Iterator[tuple[str, int]]:
    """Yields byte order and place of each entry of a classic TIFF's first directory."""
    order = "<" if data[:2] == b"II" else ">"
    try:
        (at,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, at)
    except struct.error:
        return
    for number in range(count):
        entry = at + 2 + 12 * number
        if entry + 12 <= len(data):
            yield order, entry


def _set_tiff_tag(data: bytearray, tag: int, value: int) -> None:
    for order, at in _tiff_entries(data):
        if struct.unpack_from(order + "H", data, at) == (tag,):
            struct.pack_into(order + "HII", data, at + 2, 4, 1, value % 2**32)
