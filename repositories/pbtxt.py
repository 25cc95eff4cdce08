"""The text form of protobuf messages, as Triton's config.pbtxt has it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Enum", "to_pbtxt"]


class Enum(str):
    """A value that is written without quotation marks, as TYPE_FP32."""

    __slots__ = ()


def to_pbtxt(message: Mapping[str, Any], indent: str = "") -> str:
    r"""Writes a message as text.

    Args:
        message: the fields by name: texts, numbers, booleans, `Enum`s, messages as mappings, and
            lists for repeated fields. An empty list, and None, are left out.
        indent: what stands before each line.

    Example:
        >>> print(to_pbtxt({"name": "net", "input": [{"data_type": Enum("TYPE_FP32")}]}), end="")
        name: "net"
        input {
          data_type: TYPE_FP32
        }
    """
    lines = []
    for name, given in message.items():
        several = isinstance(given, Sequence) and not isinstance(given, str)
        values = given if several else [] if given is None else [given]
        if several and all(isinstance(one, int) for one in values):
            lines += [f"{indent}{name}: {json.dumps(list(values))}\n"] if values else []
            continue
        for value in values:
            if isinstance(value, Mapping):
                inside = to_pbtxt(value, indent + "  ")
                lines.append(f"{indent}{name} {{\n{inside}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(value)}\n")
    return "".join(lines)


def _scalar(value: str | float) -> str:
    return str(value) if isinstance(value, Enum) else json.dumps(value)
