"""Writers of tiny data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np


def image_writer(folder: Path) -> Callable[..., Path]:
    """Writes images of one grey level, or a given array, below a folder."""

    def write(name, width=40, height=30, level=90, pixels=None):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if pixels is None:
            pixels = np.full((height, width), level, np.uint8)
        if path.suffix == ".npy":
            np.save(path, pixels)
        else:
            assert cv2.imwrite(str(path), pixels)
        return path

    return write


def text_writer(folder: Path) -> Callable[..., Path]:
    """Writes text files of lines below a folder."""

    def write(name, *lines):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write
