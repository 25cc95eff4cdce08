"""How the names of image and video files end: the one table that a listing follows."""

from __future__ import annotations

from pathlib import PurePath

READ = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif"),
    "PNG": (".png", ".apng"),
    "WebP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIC": (".heic", ".heif", ".hif"),
    "JPEG 2000": (".jp2", ".j2k", ".jpf"),
    "PNM": (".pnm", ".ppm", ".pgm", ".pbm"),
    "NPY": (".npy",),
}
"""The suffixes of each format that the decoder reads; it knows a format by the first bytes.

Those that need an extra (HEIC) count too: they fail with the advice to install it.
"""

IMAGE_SUFFIXES = frozenset(suffix for suffixes in READ.values() for suffix in suffixes)
"""How the names of image files end, in small letters."""

SUFFIXES_TEXT = ", ".join(sorted(IMAGE_SUFFIXES))
"""The same for messages."""

UNREAD = frozenset(
    (
        ".jxl", ".jpx", ".svg", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2",
        ".raf", ".exr", ".hdr", ".tga", ".ico", ".dcm",
    )
)  # fmt: skip
"""Those of images that the decoder doesn't read; who has some wants to know that."""

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts",
     ".wmv", ".flv", ".3gp", ".ogv")
)  # fmt: skip
"""How the names of video files end."""


def is_image(path: PurePath) -> bool:
    """Returns whether a file's name ends like that of an image, in large letters or small.

    Example:
        >>> is_image(PurePath("IMG_0001.JPG")), is_image(PurePath("notes.txt"))
        (True, False)
    """
    return path.suffix.lower() in IMAGE_SUFFIXES
