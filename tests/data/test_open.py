"""Class folders, CSV files, and which format a path is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sigcam.core.errors import DataError, UsageError
from sigcam.data import match_classes, open_dataset, read_masks
from tests.support.paths import DATA
from tests.support.tiny_datasets import image_writer, text_writer


@pytest.fixture
def image(tmp_path):
    return image_writer(tmp_path)


@pytest.fixture
def text(tmp_path):
    return text_writer(tmp_path)


@pytest.fixture
def folders(image, tmp_path):
    for name in ("val/dog/2.png", "val/dog/1.jpg", "val/Border_Collie/3.png", "val/.hidden/4.png"):
        image(name)
    return tmp_path


@pytest.fixture
def table(text, image, tmp_path):
    def write(*lines):
        for name in ("1.png", "2.png", "3.png"):
            image(f"images/{name}")
        text("list.csv", *lines)
        return tmp_path

    return write


def test_class_folders(folders):
    data = open_dataset(folders, split="val")
    assert (data.format, data.classes, data.ids_given) == (
        "folders", ("Border_Collie", "dog"), False,
    )  # fmt: skip
    assert [(s.name, s.label) for s in data.samples] == [
        ("Border_Collie/3.png", 0),
        ("dog/1.jpg", 1),
        ("dog/2.png", 1),
    ]
    assert all(s.boxes is None and s.masks is None and s.size == (40, 30) for s in data.samples)


def test_files_in_class_folders_that_are_no_images_are_noted(folders, text, image):
    hidden = "left out, hidden, or left by another program: 1 (.hidden)"
    assert open_dataset(folders / "val").notes == (hidden,)
    image("val/beside.png")
    for name in ("val/dog/a.jxl", "val/dog/notes.txt", "val/Border_Collie/x.npz"):
        text(name, "")
    text("val/dog/.DS_Store", "")
    data = open_dataset(folders / "val")
    assert len(data) == 3
    assert data.notes == (
        hidden,
        "left out, in no class folder: 1 (beside.png)",
        "left out, no image by its name: 2 (Border_Collie/x.npz, dog/notes.txt)",
        "left out, an image of a kind that isn't read; convert it to JPEG or PNG: 1 (dog/a.jxl)",
    )


def test_linked_class_folders_count_and_loops_end(folders, image, tmp_path):
    image("elsewhere/cat/7.png")
    (folders / "val" / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (folders / "val" / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    (folders / "val" / "round").symlink_to(folders / "val")
    (folders / "val" / "up").symlink_to("..")
    (folders / "val" / "dog" / "up").symlink_to(folders / "val" / "dog")
    data = open_dataset(folders / "val")
    assert data.classes == ("Border_Collie", "cat", "dog")
    assert [s.name for s in data.samples] == [
        "Border_Collie/3.png", "cat/7.png", "dog/1.jpg", "dog/2.png", "dog/more/cat/7.png",
    ]  # fmt: skip
    assert data.notes[-1].endswith(": 3 (round, up, dog/up)")


def test_litter_and_what_is_written_are_no_classes(folders, image):
    for name in (
        "@eaDir/1.png",
        "__MACOSX/1.png",
        ".cache/1.png",
        "dog/@eaDir/1.png",
        "dog/._1.jpg",
    ):
        image(f"val/{name}")
    image("val/report/1.png")
    data = open_dataset(folders / "val", written=[folders / "val" / "report"])
    assert data.classes == ("Border_Collie", "dog")
    assert len(data) == 3


def test_images_in_subfolders_of_a_class_and_links_that_lead_nowhere(folders, image):
    image("val/dog/more/9.png")
    assert "dog/more/9.png" in [s.name for s in open_dataset(folders / "val").samples]
    (folders / "val" / "dog" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"val/dog: the image .*gone\.png is missing"):
        open_dataset(folders / "val")


def test_a_class_folder_without_images(folders):
    (folders / "val" / "ant").mkdir()
    with pytest.raises(DataError, match=r"ant: no images in it \(\.apng, .*\); each class needs"):
        open_dataset(folders / "val")
    data = open_dataset(folders / "val", skip_bad=True)
    assert {s.label for s in data.samples} == {0, 2}  # the empty one keeps its id


def test_a_folder_of_splits_is_not_taken_for_classes(folders):
    with pytest.raises(DataError, match=r"(?s)is no data set of these forms.*give the split.*val/"):
        open_dataset(folders)


def test_csv_with_ids_and_names(table):
    root = table("Image,class_index,class_name", "images/1.png,1,dog", "images/3.png,0,'cat'")
    data = open_dataset(root)
    assert (data.format, data.name, data.ids_given) == ("csv", "list", True)
    assert data.classes == ("'cat'", "dog")
    assert [(s.name, s.label, s.place.line) for s in data.samples] == [
        ("images/1.png", 1, 2),
        ("images/3.png", 0, 3),
    ]
    assert (
        open_dataset(root / "list.csv", "csv", root=root).samples[0].path == root / "images/1.png"
    )


@pytest.mark.parametrize("column", ["image", "path", "File"])
@pytest.mark.parametrize("label", ["class_index", "class_id", "class", "label"])
def test_csv_with_ids_in_any_column_and_others_between(table, column, label):
    lines = (f"{column},extra,{label}", "images/1.png,x,1", "", "images/3.png,y,3")
    root = table(*lines)
    for data in (open_dataset(root / "list.csv"), open_dataset(root)):  # the one CSV of a folder
        assert [(s.name, s.label) for s in data.samples] == [
            ("images/1.png", 1),
            ("images/3.png", 3),
        ]
        assert data.ids_given


@pytest.mark.parametrize(
    ("lines", "classes", "given", "labels"),
    [
        (("image,class_name", "images/1.png,b", "images/2.png,a"), ("a", "b"), False, [1, 0]),
        (("image,label", "images/1.png,b", "images/2.png,a"), ("a", "b"), False, [1, 0]),
        (("image,label", "images/1.png,7", "images/2.png,0"), None, True, [7, 0]),
        (("path,class_id", '"images/1.png",5'), None, True, [5]),
        (("path,class_id,class", "images/1.png,5,e", "images/2.png,0,a"), None, True, [5, 0]),
    ],
)
def test_csv_with_names_or_ids(table, lines, classes, given, labels):
    data = open_dataset(table(*lines))
    assert (data.classes, data.ids_given) == (classes, given)
    assert [s.label for s in data.samples] == labels


HEAD = "image,class_id,label"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("image,kind",), r"list\.csv, line 1: the header needs a column image or path or file"),
        ((), r"list\.csv, line 1: the header needs .* got nothing"),
        ((HEAD, "images/1.png,0,a", '"x'), r"list\.csv, line 3: not CSV"),
        ((HEAD, "images/1.png,0,a", "", "images/2.png,1"), r"list\.csv, line 4: 3 columns wanted"),
        ((HEAD, "images/1.png,0,a", ",1,b"), r"list\.csv, line 3: an image and a class wanted"),
        ((HEAD, "images/1.png,0,a", "images/2.png,,b"), r"list\.csv, line 3: an image and a cl"),
        ((HEAD, "images/1.png,0,a", "images/2.png,1.5,b"), r"list\.csv, line 3: a class id is a"),
        ((HEAD, "images/1.png,0,a", "images/1.png,1,b"), r"line 3: images/1\.png has .* in line 2"),
        (
            (HEAD, "images/1.png,0,a", "images/2.png,0,b"),
            r"list\.csv, line 3: class 0 is called 'b' here and 'a'",
        ),
        ((HEAD, "images/1.png,0,a", "images/9.png,1,b"), r"line 3: the image .*9\.png is miss"),
        ((HEAD,), r"list\.csv: the data set 'list' \(csv\) has no usable images"),
        (("image,colour", "a,b"), r"list\.csv, line 1: the header needs .* got image, colour"),
        (("image,class", "images/1.png"), r"list\.csv, line 2: 2 columns wanted, .*got 1"),
        (("image,class_index", "images/1.png,one"), r"line 2: a class id is a whole .* got 'one'"),
        (("image,class_index", "images/1.png,-1"), r"line 2: a class id is a whole .* got '-1'"),
        # Whole numbers are ids, never names.
        (("image,class", "images/1.png,-1", "images/2.png,0"), r"line 2: a class id .* got '-1'"),
        (("image,class", f"images/1.png,{10**10}"), r"line 2: a class id .*nine digits.* got '1"),
        (("image,class", "images/1.png,0", "images/2.png,"), r"line 3: an image and a class"),
        (
            ("image,class", "images/1.png,0", "no.png,0"),
            r"(?s)1 of 2 images are missing: .*\(root\).*list\.csv, line 3: .*no\.png is missing",
        ),
        (
            ("image,class", "images/1.png," + "x" * 200_000),
            r"list\.csv, line 2: not CSV: field lar",
        ),
    ],
)
def test_a_mistake_in_a_csv(table, lines, message):
    with pytest.raises(DataError, match=message):
        open_dataset(table(*lines))


def test_nothing_fits(tmp_path, text):
    with pytest.raises(DataError, match=r"(?s)wsol: .*voc: .*coco: .*csv: .*It has: nothing"):
        open_dataset(tmp_path)
    text("notes.txt", "x")
    with pytest.raises(DataError, match=r"(?s)Pascal VOC\)\nIt has: notes\.txt$"):
        open_dataset(tmp_path, "voc")
    with pytest.raises(DataError, match=r"it is a file, notes\.txt"):
        open_dataset(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="nowhere doesn't exist"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="format must be auto, wsol, voc"):
        open_dataset(tmp_path, "yolo")
    with pytest.raises(UsageError, match="first_pixel is 0 or 1, got 2"):
        open_dataset(tmp_path, first_pixel=2)


def test_several_tables(table, text):
    root = table("image,label")
    text("more.csv", "image,label")
    with pytest.raises(DataError, match=r"several CSV files \(list\.csv, more\.csv\)"):
        open_dataset(root)


def test_a_folder_that_cannot_be_read(folders, monkeypatch):
    def refused(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("sigcam.images.listing.os.scandir", refused)
    with pytest.raises(DataError, match=r"val can't be listed: Permission denied"):
        open_dataset(folders / "val")


@pytest.mark.shared
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_real_data():
    pets = open_dataset(DATA / "pets")
    assert (pets.format, len(pets), pets.problems) == ("wsol", 300, ())
    assert pets.classes == ("Abyssinian", "american_bulldog", "Bengal")
    assert pets.notes == ("trimaps: 300; their level 128 is ignored",)
    for sample in pets.samples[::10]:
        inside, ignored = read_masks(sample, None)
        rows, columns = inside.any(axis=1).nonzero()[0], inside.any(axis=0).nonzero()[0]
        # These boxes were made from the trimaps' objects, without the borders.
        extent = [columns[0], rows[0], columns[-1], rows[-1]]
        assert sample.boxes.tolist() == [extent]
        assert ignored.any()
    samples = open_dataset(DATA / "imagenet_samples")
    assert (samples.format, len(samples), len(samples.classes)) == ("csv", 1000, 1000)
    assert samples.classes[:2] == ("tench", "goldfish")
    assert match_classes(samples, 1000).labels.tolist() == list(range(1000))
    beside = open_dataset(DATA / "pets" / "metadata")
    assert [s.name for s in beside.samples] == [s.name for s in pets.samples]
    assert pets.name == "pets"


def test_neither_torch_nor_onnx_is_imported():
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'onnx', 'onnxruntime'): sys.modules[name] = None\n"
        "import sigcam.data, sigcam.evaluate.results.bootstrap\n"
        "assert not {'sigcam.train', 'sigcam.export'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True)
    assert done.returncode == 0, done.stderr
