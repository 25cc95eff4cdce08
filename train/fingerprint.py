"""One hash for a set of tensors, so that files can say which weights they belong to."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping

import torch
from torch import Tensor


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names (sorted), dtypes, shapes and bytes of `tensors`.

    The bytes are hashed as little-endian and in C order, so the hash depends neither on
    the device and strides nor on the order of the mapping.

    Args:
        tensors: any shapes and dtypes, on any device.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        dtype = str(value.dtype).removeprefix("torch.")
        header = f"{name}\0{dtype}\0{'x'.join(map(str, value.shape))}\0"
        digest.update(header.encode("utf-8"))
        digest.update(_little_endian(value))
    return digest.hexdigest()


def _little_endian(value: Tensor) -> memoryview:
    # Through uint8, because NumPy has no bfloat16.
    raw = value.reshape(-1).view(torch.uint8).numpy()
    size = value.element_size()
    if sys.byteorder == "big" and size > 1:
        raw = raw.reshape(-1, size)[:, ::-1].copy().reshape(-1)
    return raw.data
