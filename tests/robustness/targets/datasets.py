"""Files of data sets, damaged: CSV, VOC's XML, COCO's JSON and text files of wsolevaluation."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from sigcam.data import Dataset, open_dataset, open_images
from tests.robustness.mutators import mutate_bytes
from tests.robustness.structured import mutate_json, mutate_table, mutate_xml
from tests.robustness.target import Fault, Target, use_all

_XML = """<annotation>
 <filename>{name}.png</filename>
 <size><width>40</width><height>30</height><depth>3</depth></size>
 <object><name>dog</name><difficult>0</difficult>
  <bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>21</ymax></bndbox></object>
 <object><name>cat</name><truncated>1</truncated>
  <bndbox><xmin>5</xmin><ymin>3</ymin><xmax>30</xmax><ymax>28</ymax></bndbox></object>
</annotation>
"""
_COCO = """{"images": [
 {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
 {"id": 2, "file_name": "b.png", "width": 40, "height": 30}],
 "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
 "annotations": [
 {"id": 1, "image_id": 1, "category_id": 3, "bbox": [2, 3, 10, 9.5], "area": 90, "iscrowd": 0,
  "segmentation": [[2, 3, 12, 3, 12, 12, 2, 12]]},
 {"id": 2, "image_id": 2, "category_id": 7, "bbox": [1, 1, 20, 20], "area": 400, "iscrowd": 0,
  "segmentation": [[1, 1, 20, 1, 20, 20]]},
 {"id": 3, "image_id": 2, "category_id": 7, "bbox": [1, 1, 20, 20], "area": 400, "iscrowd": 1,
  "segmentation": {"size": [30, 40], "counts": [100, 300, 800]}}]}
"""
_CSV = {
    "names.csv": "image,class,width\na.png,cat,40\nb.png,dog,40\n",
    "ids.csv": "path,class_index,class_name\na.png,0,cat\nb.png,1,dog\n",
    "columns.csv": "image,cat,dog\na.png,1,0\nb.png,0,1\n",
}
_WSOL = {
    "image_ids.txt": "a.png\nb.png\n",
    "class_labels.txt": "a.png,0\nb.png,1\n",
    "image_sizes.txt": "a.png,40,30\nb.png,40,30\n",
    "localization.txt": "a.png,2,3,20,21\nb.png,0,0,39,29\n",
    "classes.txt": "cat\ndog\n",
}


class Datasets(Target):
    """Data sets: opened with one class an image or several, images with problems left out."""

    def make_corpus(self, folder: Path) -> None:
        kinds = {name: {name: text} for name, text in _CSV.items()}
        kinds |= {"coco": {"instances.json": _COCO}, "wsol": _WSOL, "voc": {}}
        for kind, files in kinds.items():
            (folder / kind).mkdir()
            for name, text in files.items():
                (folder / kind / name).write_text(text)
            images = folder / kind / ("JPEGImages" if kind == "voc" else ".")
            images.mkdir(exist_ok=True)
            for name in "ab":
                cv2.imwrite(str(images / f"{name}.png"), np.full((30, 40, 3), 90, np.uint8))
        (folder / "voc/Annotations").mkdir()
        (folder / "voc/ImageSets/Main").mkdir(parents=True)
        (folder / "voc/ImageSets/Main/train.txt").write_text("a\nb\n")
        for name in "ab":
            (folder / f"voc/Annotations/{name}.xml").write_text(_XML.format(name=name))

    def open(self, folder: Path) -> None:
        self._kinds = sorted(folder.iterdir())
        for kind in self._kinds:
            if len(open_dataset(kind, multi_label=kind.name == "voc")) != 2:
                raise RuntimeError(f"{kind.name} doesn't have its two images")

    def damage(self, rng: random.Random, scratch: Path) -> str:
        kind = rng.choice(self._kinds)
        shutil.copytree(kind, scratch, dirs_exist_ok=True)
        texts = [file for file in sorted(scratch.rglob("*.*")) if file.suffix in _MUTATORS]
        file = rng.choice(texts)
        if rng.random() < 0.75:
            text, done = _MUTATORS[file.suffix](file.read_text(), rng)
            made = text.encode("utf-8", "surrogatepass")
        else:
            made, done = mutate_bytes(file.read_bytes(), rng, rng.choice(texts).read_bytes())
        file.write_bytes(made)
        return f"{file.name}: {done}"

    def check(self, rng: random.Random, scratch: Path) -> None:
        ways: list[Callable[[], Dataset]] = [
            lambda: open_dataset(scratch),
            lambda: open_dataset(scratch, multi_label=True, skip_bad=True),
            lambda: open_images(scratch),
        ]
        use_all(lambda way=way: _check_samples(way()) for way in ways)


def _check_samples(data: Dataset) -> None:
    """Looks at what a data set promises of its samples."""
    for sample in data.samples:
        if sample.size != (40, 30) and sample.path.exists():
            raise Fault("wrong", f"the size {sample.size} of an image of 40 x 30 pixels")
        if sample.boxes is not None and not np.isfinite(sample.boxes).all():
            raise Fault("wrong", "a box that isn't finite")
        if sample.label is not None and not 0 <= sample.label < max(1, data.num_classes):
            raise Fault("wrong", f"the class {sample.label} of {data.num_classes}")


_MUTATORS: dict[str, Callable[[str, random.Random], tuple[str, str]]] = {
    ".csv": mutate_table,
    ".txt": mutate_table,
    ".json": mutate_json,
    ".xml": mutate_xml,
}
