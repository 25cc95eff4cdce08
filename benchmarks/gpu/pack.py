"""Carries ONNX Runtime's GPU build to a machine without a network, in pieces.

    python benchmarks/gpu/pack.py pack FOLDER --capability 9.0 --python 3.12   # with a network
    python benchmarks/gpu/pack.py unpack FOLDER SITE                           # over there

`pack` downloads the wheels of simplejpeg and onnxruntime-gpu, keeps the kernels of one compute
capability, leaves out what a check doesn't use, and writes FOLDER/part0, part1 and so on, each with
one file of at most --piece MiB. `unpack` puts them together again; SITE goes into PYTHONPATH.
"""

from __future__ import annotations

import argparse
import io
import lzma
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

if not __package__:  # run as a script, which looks for modules in its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.gpu.slim import slim

WHEELS = ("simplejpeg", "onnxruntime-gpu")
NAME = "site.tar.xz"
_MIB = 1 << 20
_CUDA = "libonnxruntime_providers_cuda.so"
_LEFT_OUT = (
    "libonnxruntime_providers_tensorrt.so", "libonnxruntime.so.", "onnxruntime/transformers/",
    "onnxruntime/datasets/", "onnxruntime/tools/", "onnxruntime/quantization/",
)  # fmt: skip


def download(folder: Path, python: str) -> list[Path]:
    """Downloads the wheels for a Python of Linux on x86-64."""
    for name in WHEELS:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
             "--only-binary=:all:", "--python-version", python, "--implementation", "cp",
             "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_27_x86_64",
             "--platform", "any", "--dest", str(folder), name],
            check=True,
        )  # fmt: skip
    return sorted(folder.glob("*.whl"))


def pack(wheels: list[Path], folder: Path, architecture: int, piece: int) -> list[Path]:
    """Writes the contents of wheels in pieces.

    Args:
        wheels: the files.
        folder: gets part0, part1 and so on; those that it has already are replaced.
        architecture: compute capability times ten, whose kernels are kept.
        piece: most bytes of a file.

    Returns:
        The files.
    """
    packed = io.BytesIO()
    with lzma.open(packed, "w", preset=6) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if name.endswith("/") or any(part in name for part in _LEFT_OUT):
                        continue
                    data = archive.read(name)
                    if name.endswith(_CUDA):
                        data = slim(data, architecture)
                    about = tarfile.TarInfo(name)
                    about.size, about.mode = len(data), 0o644
                    tar.addfile(about, io.BytesIO(data))
    for old in folder.glob(f"part*/{NAME}.*"):
        old.unlink()
    written = []
    data = packed.getvalue()
    for number, first in enumerate(range(0, len(data), piece)):
        path = folder / f"part{number}" / f"{NAME}.{number:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[first : first + piece])
        written.append(path)
    return written


def unpack(folder: Path, site: Path) -> int:
    """Puts the pieces together into a folder of packages; returns how many there were.

    Raises:
        SystemExit: a piece is missing.
    """
    pieces = sorted(folder.glob(f"part*/{NAME}.*"), key=lambda path: path.suffix)
    numbers = [int(path.suffix[1:]) for path in pieces]
    if not pieces or numbers != list(range(len(pieces))):
        raise SystemExit(f"{folder} must have the pieces 0, 1 and so on, got {numbers}")
    data = b"".join(path.read_bytes() for path in pieces)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:xz") as tar:
            tar.extractall(site, filter="data")
    except (tarfile.TarError, lzma.LZMAError, EOFError) as exc:
        raise SystemExit(f"{folder} has no whole archive; is the last there? ({exc})") from exc
    return len(pieces)


def main(given: list[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="pack.py", description="see the top of this file")
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("pack")
    first.add_argument("folder", type=Path)
    first.add_argument("--capability", required=True, help="of the GPU over there, such as 9.0")
    first.add_argument("--python", required=True, help="the Python over there, such as 3.12")
    first.add_argument("--piece", type=int, default=60, help="most MiB of a file (60)")
    second = commands.add_parser("unpack")
    second.add_argument("folder", type=Path)
    second.add_argument("site", type=Path)
    asked = parser.parse_args(given)
    if asked.command == "unpack":
        print(f"{unpack(asked.folder, asked.site)} pieces in {asked.site}")
        return 0
    architecture = int(asked.capability.replace(".", ""))
    with tempfile.TemporaryDirectory() as temporary:
        wheels = download(Path(temporary), asked.python)
        for path in pack(wheels, asked.folder, architecture, asked.piece * _MIB):
            print(f"{path}: {path.stat().st_size / _MIB:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
