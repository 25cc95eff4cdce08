"""YAML in block form, which both KServe's and Ray's files are written in."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["to_yaml"]


def to_yaml(value: Any, indent: str = "") -> str:
    r"""Writes mappings and lists as YAML.

    Texts are written as in JSON, which YAML contains, and so are lists of texts and numbers.

    Args:
        value: a mapping or a list, of such and of texts, numbers, booleans and None.
        indent: what stands before each line.

    Example:
        >>> print(to_yaml({"name": "net", "args": [1, "b"], "ports": [{"port": 80}]}), end="")
        name: "net"
        args: [1, "b"]
        ports:
          - port: 80
    """
    lines = []
    if isinstance(value, dict):
        for key, one in value.items():
            if _is_plain(one):
                lines.append(f"{indent}{key}: {json.dumps(one)}\n")
            else:
                lines.append(f"{indent}{key}:\n{to_yaml(one, indent + '  ')}")
        return "".join(lines)
    for one in value:
        inside = to_yaml(one, indent + "  ")
        lines.append(f"{indent}- {inside[len(indent) + 2 :]}")
    return "".join(lines)


def _is_plain(value: Any) -> bool:
    """Says whether it stands on its key's line: what is empty or no mapping, and lists of such."""
    if isinstance(value, list):
        return not any(isinstance(one, (dict, list)) for one in value)
    return not isinstance(value, dict) or not value
