"""Images of every format that the decoder reads, damaged, explained with a tiny model."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import onnx

import sigcam
from sigcam.cli import main
from sigcam.core.errors import ImageWarning, SigcamError
from sigcam.core.spec import ClassSelection
from sigcam.images.decode import read_image
from sigcam.images.headers import size_of_file
from sigcam.images.pixels import PixelFormat
from tests.robustness import structured
from tests.robustness.commands import run_command
from tests.robustness.mutators import mutate_bytes
from tests.robustness.target import Fault, Target
from tests.support.tiny import artifact_graph, tiny_spec, write

FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "NPY")
"""The formats that must be among the whole files; others are, where the decoder reads them."""

_SUFFIXES = {
    "JPEG": ".jpg", "PNG": ".png", "WebP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif",
    "NPY": ".npy", "PPM": ".ppm", "AVIF": ".avif", "JPEG 2000": ".jp2", "HDR": ".hdr",
}  # fmt: skip
_KINDS = (PixelFormat(3), PixelFormat(1), PixelFormat(3, as_bytes=False), PixelFormat(6, False))


class Images(Target):
    """Images: explained, read to other pixels, and now and then given to the command."""

    def make_corpus(self, folder: Path) -> None:
        warnings.simplefilter("ignore", ImageWarning)  # of several frames, for one
        spec = tiny_spec(classes=ClassSelection("top1"))
        write(onnx, artifact_graph(onnx, spec), folder / "model.onnx", spec.to_json())
        for number, (form, data) in enumerate(_whole_files()):
            try:
                read_image(data, pixels=PixelFormat(6, False) if form == "TIFF 6" else _KINDS[0])
            except SigcamError:
                continue  # of a format or kind that the decoder doesn't read
            kind = form.removesuffix(" 6")
            (folder / f"{number:02}{_SUFFIXES[kind]}").write_bytes(data)

    def open(self, folder: Path) -> None:
        cv2.setNumThreads(1)
        self._model = folder / "model.onnx"
        self._session = sigcam.load(self._model, "ort", threads=1)
        kinds = {suffix: form for form, suffix in _SUFFIXES.items()}
        self._files: dict[str, list[bytes]] = {}
        for file in sorted(folder.iterdir()):
            if file != self._model:
                self._files.setdefault(kinds[file.suffix], []).append(file.read_bytes())
        missing = set(FORMATS) - self._files.keys()
        if missing:
            raise RuntimeError(f"the decoder reads none of the whole files of {missing}")

    def damage(self, rng: random.Random, scratch: Path) -> str:
        form = rng.choice(tuple(self._files))
        data = rng.choice(self._files[form])
        other = rng.choice(self._files[rng.choice((form, rng.choice(tuple(self._files))))])
        chance = rng.random()
        if chance < 0.1:
            made, done = structured.huge_size(data, rng, form)
        elif chance < 0.5 and form in ("PNG", "WebP", "JPEG", "AVIF", "JPEG 2000"):
            made, done = structured.mutate_parts(data, rng, form)
        elif chance < 0.5 and form == "TIFF":
            made, done = structured.mutate_tiff(data, rng)
        else:
            made, done = mutate_bytes(data, rng, other)
        # A wrong suffix is no damage: the first bytes say what a file is.
        suffix = _SUFFIXES[form] if rng.random() < 0.95 else rng.choice(tuple(_SUFFIXES.values()))
        (scratch / f"image{suffix}").write_bytes(made)
        return f"{form}: {done}"

    def check(self, rng: random.Random, scratch: Path) -> None:
        (path,) = scratch.iterdir()
        # One use an item: an image of as many pixels as are decoded takes seconds for each.
        use = rng.random()
        if use < 0.6:
            self._explain(path)
        elif use < 0.9:
            read_image(path.read_bytes(), pixels=rng.choice(_KINDS))
        else:
            out = ("--out", scratch / "maps") if rng.random() < 0.5 else ()
            run_command(main, "explain", self._model, path, *out, "--json")

    def _explain(self, path: Path) -> None:
        [one] = self._session.explain(path)
        width, height = size_of_file(path)
        if one.heatmap.shape != (height, width):
            raise Fault("wrong", f"a map of {one.heatmap.shape} for {height} x {width} pixels")
        if not (np.isfinite(one.heatmap).all() and 0 <= one.probability <= 1):
            raise Fault("wrong", "a map or a probability that is none")


def _whole_files() -> Iterator[tuple[str, bytes]]:
    """Yields images of all formats and kinds, small enough for thousands of tries."""
    rng = np.random.default_rng(4)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (96, 72), interpolation=cv2.INTER_CUBIC)
    large = cv2.resize(coarse, (400, 300), interpolation=cv2.INTER_CUBIC)
    yield from _by_opencv(image, large)
    yield from _by_pillow(image)
    yield from _by_tifffile(image)
    for array in (image, image[:, :, 0], image.astype(np.uint16) * 257, np.asfortranarray(image)):
        file = io.BytesIO()
        np.save(file, array)
        yield "NPY", file.getvalue()


def _by_opencv(image: np.ndarray, large: np.ndarray) -> Iterator[tuple[str, bytes]]:
    grey, deep = image[:, :, 0], image.astype(np.uint16) * 257
    alpha = np.dstack([image, grey])
    tables = {
        "JPEG": [image, grey, large],
        "PNG": [image, grey, deep, alpha, large],
        "WebP": [image, alpha],
        "GIF": [image],
        "BMP": [image, grey, alpha],
        "TIFF": [image, grey, deep, image.astype(np.float32)],
        "PPM": [image, deep],
        "AVIF": [image, alpha],
        "JPEG 2000": [image, grey],
        "HDR": [image.astype(np.float32) / 255],
    }
    for form, arrays in tables.items():
        for array in arrays:
            try:
                done, data = cv2.imencode(_SUFFIXES[form], array)
            except cv2.error:  # this build writes none
                continue
            if done:
                yield form, data.tobytes()


def _by_pillow(image: np.ndarray) -> Iterator[tuple[str, bytes]]:
    from PIL import Image

    colours = Image.fromarray(image)
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = [
        ("JPEG", colours, {"progressive": True}), ("JPEG", colours, {"exif": turned}),
        ("JPEG", colours.convert("CMYK"), {}), ("JPEG", colours, {"subsampling": 0}),
        ("PNG", colours.quantize(17), {}), ("PNG", colours, {"exif": turned}),
        ("PNG", colours.convert("1"), {}), ("GIF", colours.quantize(64), {"transparency": 3}),
        ("GIF", colours, {"save_all": True, "append_images": [colours.rotate(9)], "loop": 0}),
        ("WebP", colours, {"lossless": True, "exif": turned}),
        ("WebP", colours, {"save_all": True, "append_images": [colours.rotate(9)]}),
        ("BMP", colours.convert("P"), {}), ("BMP", colours.convert("1"), {}),
        ("TIFF", colours, {"compression": "tiff_lzw"}), ("TIFF", colours.convert("1"), {}),
        ("TIFF", colours, {"compression": "jpeg"}), ("TIFF", colours.convert("CMYK"), {}),
        ("PPM", colours.convert("L"), {}),
    ]  # fmt: skip
    for form, picture, options in kinds:
        file = io.BytesIO()
        picture.save(file, form, **options)
        yield form, file.getvalue()


def _by_tifffile(image: np.ndarray) -> Iterator[tuple[str, bytes]]:
    import tifffile

    planes = np.stack([image[:, :, 0]] * 6)
    kinds = [
        ("TIFF", image, {"tile": (32, 32)}), ("TIFF", image, {"bigtiff": True}),
        ("TIFF", image, {"compression": "zlib", "predictor": True}),
        ("TIFF", image, {"byteorder": ">"}),
        ("TIFF 6", planes.astype(np.float32), {"planarconfig": "separate"}),
        ("TIFF 6", planes.astype(np.uint16), {"photometric": "minisblack"}),
    ]  # fmt: skip
    for form, array, options in kinds:
        file = io.BytesIO()
        given = {"photometric": "rgb" if array.ndim == 3 and form == "TIFF" else "minisblack"}
        tifffile.imwrite(file, array, **{**given, **options})
        yield form, file.getvalue()
