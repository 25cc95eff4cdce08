"""No command writes over one of its inputs: a table of commands, what they read, and by what name.

Of a case, `{out}` is where the command writes and `{place}` a name in there that it would write;
that name is made a link to the input, which must be refused and stay as it is.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sigcam.classifier.zoo import load_model
from sigcam.cli import main

pytestmark = pytest.mark.slow


class Case(NamedTuple):
    """A command, the file in `{out}` that it would write, and what it reads.

    Attributes:
        command: the arguments; `{name}` stands for the file of `inputs` of that name.
        place: of the written file, in `{out}`.
        read: the names of the inputs that the place is tried as.
    """

    command: str
    place: str
    read: tuple[str, ...]


TRAIN = "train --arch {net}:net --num-classes 2 --weights {weights} --size 32 --epochs 1 --views 2"
CASES = [
    Case("explain {model} {image} --out {out}/m.png", "m.png", ("model", "head", "image")),
    Case("explain {model} {image} --out {out}", "a.png", ("model", "image")),
    Case("explain {model} {folder} {second} --out {out}", "green/0.png", ("model", "second")),
    Case("explain {model} --files-from {list} --out {out} --format npz", "a.npz",
         ("list", "image")),
    Case("explain {model} {image} --head {other} --out {out}/m.json", "m.json", ("other",)),
    Case("explain {model} {image} {second} --class red --class green --out {out}", "a-1.png",
         ("image", "second", "model")),
    Case(TRAIN + " --data {folder} --out {out}/b.safetensors", "b.safetensors",
         ("net", "weights", "image")),
    Case(TRAIN + " --data {table} --out {out}/b.safetensors", "b.run/checkpoint.pt",
         ("weights", "table", "image")),
    Case(TRAIN + " --data {table} --out {out}/b.safetensors --run-dir {out}", "metrics.csv",
         ("table", "image")),
    Case("export --sigmoid-branch {branch} --out {out}/m.onnx", "m.onnx", ("branch", "net")),
    Case("export --sigmoid-branch {branch} --class-names {names} --head-graph --out {out}/m.onnx",
         "m.head.onnx", ("branch", "names")),
    Case("export --sigmoid-branch {branch} --external-data --out {out}/m.onnx", "m.onnx.data",
         ("branch",)),
    Case("export --arch {net}:net --num-classes 2 --weights {weights} --branch softmax --size 32 "
         "--out {out}/m.onnx", "m.onnx", ("net", "weights")),
    Case("quantize {model} --data {folder} --calibration 8 --held-out 8 --out {out}/q.onnx",
         "q.onnx", ("model", "head", "image")),
    Case("quantize {model} --data {folder} --head {head} --out {out}/q.onnx", "q.head.onnx",
         ("model", "head")),
    Case("build-engine {model} --out {out}/e.engine", "e.engine", ("model",)),
    Case("build-engine {model} --out {out}/e.engine", "e.engine.json", ("model", "head")),
    Case("build-engine {model} --out {out}/e.engine --timing-cache {out}/t", "t", ("model",)),
    *(
        Case("evaluate {model} --data {table} --out {out}", name, ("model", "image", "table"))
        for name in ("report.html", "report.md", "report.json", "images.csv", "evaluation.json",
                     "0.records")
    ),
    Case("sanity --sigmoid-branch {branch} --data {folder} --out {out}/s.json", "s.json",
         ("branch", "image", "net")),
    Case("kernels build --out {out}/k", "k", ("source", "header")),
    Case("kernels ptx --out {out}/k", "k", ("source", "header")),
    Case("demo {image} --out {out}", "index.html", ("image",)),
]  # fmt: skip


@pytest.fixture(scope="module")
def inputs(work, tmp_path_factory):
    """A file for each name in the table."""
    from sigcam.kernels.compile import SOURCE

    folder = tmp_path_factory.mktemp("inputs")
    weights = folder / "weights.pth"
    torch.save(load_model(work.arch, None, 2).model.state_dict(), weights)
    command = [
        "export", "--sigmoid-branch", str(work.branch), "--classes", "input", "--head-graph",
        "--method", "gradcam", "--out", str(folder / "model.onnx"),
    ]  # fmt: skip
    made = CliRunner().invoke(main, command)
    assert made.exit_code == 0, made.stderr
    for number in range(10):
        image = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        for kind in ("green", "red"):
            (folder / "images" / kind).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(
                str(folder / "images" / kind / f"{number}.png"), image // 2 + (kind == "red")
            )
    shutil.copy(folder / "images" / "green" / "0.png", folder / "a.png")
    shutil.copy(folder / "images" / "green" / "1.png", folder / "a-1.png")
    shutil.copy(folder / "model.head.onnx", folder / "other.head.onnx")
    rows = "".join(f"images/{kind}/1.png,{kind}\n" for kind in ("green", "red"))
    (folder / "table.csv").write_text(f"image,class\na.png,green\n{rows}")
    (folder / "names.txt").write_text("green\nred\n")
    (folder / "list.txt").write_text(f"{folder / 'a.png'}\n")
    return {
        "net": work.folder / "net.py", "weights": weights, "branch": work.branch,
        "model": folder / "model.onnx", "head": folder / "model.head.onnx",
        "other": folder / "other.head.onnx", "image": folder / "a.png",
        "second": folder / "a-1.png", "folder": folder / "images", "table": folder / "table.csv",
        "names": folder / "names.txt", "list": folder / "list.txt", "source": SOURCE,
        "header": SOURCE.with_name("enlarge.cuh"),
    }  # fmt: skip


def digests(inputs):
    files = {file for one in inputs.values() for file in (one, *one.rglob("*")) if file.is_file()}
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize(
    ("case", "read"),
    [(case, name) for case in CASES for name in case.read],
    ids=lambda value: (
        value if isinstance(value, str) else f"{value.command.split()[0]}-{value.place}"
    ),
)
def test_a_place_that_is_an_input(inputs, cli, tmp_path, monkeypatch, case, read):
    if case.command.startswith("build-engine"):
        pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx is not installed")
    monkeypatch.setattr("sigcam.demo.run.load_network", lambda: None)
    monkeypatch.setattr("sigcam.demo.run.export_all", _page)
    out = tmp_path / "out"
    place = out / case.place
    place.parent.mkdir(parents=True)
    target = inputs[read]
    if read == "image" and "{folder}" in case.command:
        target = inputs["folder"] / "green" / "0.png"
    if case.command.startswith("evaluate") and read == "image":
        target = inputs["folder"] / "green" / "1.png"
    before = digests(inputs)
    if case.read.index(read) % 2:
        place.symlink_to(target)
    else:
        place.hardlink_to(target)
    arguments = [word.format(out=out, **inputs) for word in case.command.split()]
    found = cli(*arguments)
    assert found.exit_code in (1, 2), found.stdout
    assert "is an input" in found.stderr
    assert "Traceback" not in found.stderr
    assert digests(inputs) == before
    assert place.samefile(target)
    assert [path for path in out.rglob(".*") if path.is_file()] == []


def _page(network, out: Path, say):
    """Stands for the demo's work, which takes minutes; writes its page."""
    from sigcam.core.files import write_text

    del network, say
    write_text(out / "index.html", "page")


def test_inputs_by_their_own_names(inputs, cli, tmp_path, monkeypatch):
    """The plainest mistakes, in the folder itself and by relative names."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("model", "head", "image", "branch", "net"):
        shutil.copy(inputs[name], folder)
    monkeypatch.chdir(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for command in (
        "explain model.onnx a.png --out .",
        "explain model.onnx a.png --out ./a.png",
        "explain model.onnx a.png --out ../work/a.png",
        "export --sigmoid-branch branch.safetensors --out ./branch.safetensors",
        f"quantize model.onnx --data {inputs['folder']} --out ./model.onnx",
        f"quantize model.onnx --data {inputs['folder']} --out model.head.onnx",
        "train --arch net.py:net --num-classes 2 --data . --out net.py",
    ):
        found = cli(*command.split())
        assert found.exit_code == 2, (command, found.stderr)
        assert "is an input" in found.stderr
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name: data for name, data in after.items() if name in before} == before


def test_folders_that_are_written_inside_a_data_set(inputs, work, cli, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(inputs["folder"], data)
    command = (
        f"{TRAIN} --data {data} --out {data}/b.safetensors --run-dir {data}/run "
        f"--cache-dir {data}/cache"
    ).format(**inputs)
    for _ in range(3):  # by then its own files lie in the data set
        done = cli(*command.split())
        assert done.exit_code == 0, done.stderr
        assert "20 images, 2 views of each" in done.stderr
    shutil.rmtree(data / "run")
    shutil.rmtree(data / "cache")
    reports = [cli("evaluate", work.top1, "--data", data, "--out", data / "report")]
    reports.append(cli("evaluate", work.top1, "--data", data, "--out", data / "report"))
    assert [one.exit_code for one in reports] == [0, 0], reports[1].stderr
    assert "20 images (folders)" in reports[1].stderr
    assert "the folder that is written to: 1 (report)" in reports[1].stderr
    for own in (data, data / "red", f"{data}/red/.."):
        refused = cli("evaluate", work.top1, "--data", data, "--out", own)
        assert refused.exit_code == 2
        assert "is a folder of the data set" in refused.stderr
