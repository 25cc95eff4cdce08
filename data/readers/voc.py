"""Reads Pascal VOC: an XML file for each image in Annotations/, images in JPEGImages/.

VOC counts pixels from 1 with both ends inside, so 1 is taken off every coordinate; ImageNet's XML
counts from 0, which `first_pixel=0` says. Files of VOC hold decimals at times, which are kept.
Several classes in an image, and `difficult`: see `objects.py`. The segmentations
(SegmentationClass, SegmentationObject) are not read.

Nobody vouches for the XML, so a DOCTYPE is refused. Entities can only be declared in one, so
neither their expansion (a file of a kilobyte that becomes gigabytes) nor external files can
happen. Annotations have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.parsers import expat

from sigcam.core.errors import DataError
from sigcam.data.dataset import (
    Dataset,
    Place,
    Problem,
    Sample,
    box_array,
    problem,
)
from sigcam.data.readers.objects import (
    Object,
    by_class,
    has_several_classes,
    notes_of,
    of_one_class,
)
from sigcam.data.readers.text import (
    class_file,
    is_count,
    lines_of,
    numbers,
)
from sigcam.images.listing import is_litter
from sigcam.images.suffixes import is_image

SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class _Annotation:
    place: Place
    size: tuple[int, int] | None
    objects: list[tuple[str, Element]] = field(default_factory=list)


def read_voc(
    folder: Path, split: str | None = None, first_pixel: int = 1, *, multi_label: bool = False
) -> Dataset:
    """Reads a folder in the form of Pascal VOC.

    Classes are numbered by `classes.txt` in the folder, one a line; or, where there is none, by
    the sorted names in all annotations, whatever the split.

    Args:
        folder: with Annotations/ and JPEGImages/.
        split: a file ImageSets/Main/SPLIT.txt, one image's name a line without its suffix;
            None: all annotations.
        first_pixel: number of an image's first row and column, 1 or 0.
        multi_label: whether an image has every class of its objects, not only that of the
            largest box.

    Raises:
        DataError: the folders, or the split's file, aren't there.

    Example:
        dataset = read_voc(Path("VOCdevkit/VOC2012"), split="val")
        dataset.classes, len(dataset.samples), dataset.samples[0].boxes
    """
    for name in ("Annotations", "JPEGImages"):
        if not (folder / name).is_dir():
            raise DataError(f"{folder / name} is missing; Pascal VOC has images and annotations")
    problems: list[Problem] = []
    stems = _split(folder, split, problems)
    given = class_file(folder)
    found_there = (folder / "Annotations").glob("*.xml")
    files = sorted(file for file in found_there if not is_litter(file.name))
    if given is not None and stems is not None:
        files = [file for file in files if file.stem in stems]
    found = _annotations(files, stems, problems)
    readable = {stem: one for stem, one in found.items() if one is not None}
    classes = given or tuple(sorted({name for a in readable.values() for name, _ in a.objects}))
    chosen = stems if stems is not None else {stem: a.place for stem, a in readable.items()}
    maker = _Maker(folder, classes, first_pixel, problems, multi_label)
    for stem, place in chosen.items():
        if stem not in found:
            text = f"{stem} has no annotation {Path('Annotations') / (stem + '.xml')}"
            problems.append(problem(place, text))
        elif stem in readable:
            maker.add(stem, readable[stem])
    return Dataset(
        folder.resolve().name,
        folder,
        "voc",
        classes or None,
        maker.samples,
        tuple(problems),
        ids_given=given is not None,
        notes=notes_of(maker.without, maker.several) + _unannotated(maker, split, found),
        multi_label=multi_label,
    )


def _annotations(
    files: Sequence[Path], stems: Mapping[str, Place] | None, problems: list[Problem]
) -> dict[str, _Annotation | None]:
    """Reads each file's annotation, None for a bad one, which is a problem if it is asked for."""
    found: dict[str, _Annotation | None] = {}
    for file in files:
        annotation = _read_annotation(file)
        if isinstance(annotation, Problem):
            if stems is None or file.stem in stems:
                problems.append(annotation)
            found[file.stem] = None
        else:
            found[file.stem] = annotation
    return found


def _unannotated(
    maker: _Maker, split: str | None, found: Mapping[str, _Annotation | None]
) -> tuple[str, ...]:
    """Makes the note of images that no annotation is of; in a split they are no concern."""
    count = 0 if split is not None else len(maker.images.keys() - found.keys())
    return (f"images left out, without an annotation: {count}",) if count else ()


def _split(folder: Path, split: str | None, problems: list[Problem]) -> dict[str, Place] | None:
    """Reads the names in a split's file with their places; None for all."""
    if split is None:
        return None
    file = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not file.is_file():
        there = ", ".join(sorted(f.stem for f in file.parent.glob("*.txt"))) or "no splits"
        raise DataError(f"{file} is missing; {file.parent} has {there}")
    stems: dict[str, Place] = {}
    for place, line in lines_of(file):
        stem = line.split()[0]
        if stem in stems:
            text = f"{stem} stands in line {stems[stem].line} already"
            problems.append(problem(place, text))
        stems.setdefault(stem, place)
    return stems


def _read_annotation(file: Path) -> _Annotation | Problem:
    root = read_xml(file)
    if isinstance(root, Problem):
        return root
    if root.tag != "annotation":
        return Problem(file, root.line, f"<annotation> wanted, got <{root.tag}>")
    size = root.find("size")
    sides = [] if size is None else [size.value("width"), size.value("height")]
    known = len(sides) == 2 and all(is_count(side) and int(side) for side in sides)
    annotation = _Annotation(Place(file), (int(sides[0]), int(sides[1])) if known else None)
    for element in root.all("object"):
        name = element.value("name")
        if not name:
            return Problem(file, element.line, "<object> has no <name>: a label without a class")
        annotation.objects.append((name, element))
    return annotation


class _Maker:
    """Makes samples of annotations."""

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        first_pixel: int,
        problems: list[Problem],
        multi_label: bool,
    ) -> None:
        images = sorted((folder / "JPEGImages").iterdir())
        self.images = {p.stem: p for p in images if is_image(p) and not is_litter(p.name)}
        self.folder = folder / "JPEGImages"
        self.ids = {name: index for index, name in enumerate(classes)}
        self.first_pixel = first_pixel
        self.problems = problems
        self.multi_label = multi_label
        self.samples: list[Sample] = []
        self.without = self.several = 0

    def add(self, stem: str, annotation: _Annotation) -> None:
        """Adds a sample, unless something is wrong with it or a class is wanted and none counts."""
        before = len(self.problems)
        file = annotation.place.file
        read = [self._object(file, name, element) for name, element in annotation.objects]
        if len(self.problems) > before:
            return
        objects = [one for one in read if one is not None]
        path = self.images.get(stem, self.folder / f"{stem}.jpg")
        name = path.relative_to(self.folder).as_posix()
        plain = Sample(name, path, annotation.place, size=annotation.size)
        if self.multi_label:
            made = [_of_class(plain, label, some) for label, some in by_class(objects)]
            self.samples.append(replace(made[0], further=tuple(made[1:])) if made else plain)
            return
        known = of_one_class(objects)
        if not known:
            self.without += 1
            return
        self.several += has_several_classes(objects)
        self.samples.append(_of_class(plain, known[0].label, known))

    def _object(self, file: Path, name: str, element: Element) -> Object | None:
        place = place_of(file, element)
        if name not in self.ids:
            self.problems.append(problem(place, f"{name!r} is none of the {len(self.ids)} classes"))
            return None
        box = element.find("bndbox")
        texts = [] if box is None else [box.value(side) for side in SIDES]
        values = numbers(texts)
        if box is None or values is None:
            text = f"<bndbox> with numbers in {', '.join(SIDES)} wanted, got {texts}"
            self.problems.append(problem(place, text))
            return None
        if self.first_pixel and min(values[:2]) == 0:
            text = "pixels count from 1 in Pascal VOC, got 0; give first_pixel=0 if these don't"
            self.problems.append(problem(place_of(file, box), text))
            return None
        x0, y0, x1, y1 = (value - self.first_pixel for value in values)
        apart = element.value("difficult") == "1"
        return Object(self.ids[name], (x0, y0, x1, y1), place_of(file, box), apart)


def _of_class(plain: Sample, label: int, counting: Sequence[Object]) -> Sample:
    """Returns an image with the boxes of the objects of one class that count."""
    boxes = box_array(one.box for one in counting) if counting else None
    places = tuple(one.place for one in counting)
    return replace(plain, label=label, boxes=boxes, box_places=places)


MAX_DEPTH = 64
MAX_BYTES = 16 * 2**20


@dataclass
class Element:
    """An element of an XML file, which knows its line.

    Attributes:
        tag: its name.
        line: where it begins, counted from 1.
        text: the characters directly in it.
        children: the elements in it.

    Example:
        >>> box = Element("bndbox", 8, children=[Element("xmin", 9, " 12 ")])
        >>> box.value("xmin"), box.value("ymin"), box.find("ymin")
        ('12', '', None)
    """

    tag: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def all(self, tag: str) -> list[Element]:
        """Returns the children of that name."""
        return [child for child in self.children if child.tag == tag]

    def find(self, tag: str) -> Element | None:
        """Returns the first child of that name; None if there is none."""
        return next(iter(self.all(tag)), None)

    def value(self, tag: str) -> str:
        """Returns the text of the first child of that name, stripped; "" without one."""
        child = self.find(tag)
        return "" if child is None else child.text.strip()


class _Refused(Exception):  # noqa: N818  (never leaves this file)
    pass


class _Tree:
    """Builds elements from a parser's calls."""

    def __init__(self) -> None:
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.path = [Element("", 0)]

    def _start(self, tag: str, _: object) -> None:
        if len(self.path) > MAX_DEPTH:
            raise _Refused(f"elements are nested deeper than {MAX_DEPTH}")
        element = Element(tag, self.parser.CurrentLineNumber)
        self.path[-1].children.append(element)
        self.path.append(element)

    def _end(self, _: str) -> None:
        self.path.pop()

    def _text(self, characters: str) -> None:
        self.path[-1].text += characters

    def _doctype(self, *_: object) -> None:
        raise _Refused("it has a DOCTYPE, which may declare entities; remove it")


def read_xml(file: Path) -> Element | Problem:
    r"""Reads an XML file.

    Returns:
        Its root element; or what is wrong with it: unreadable, not well-formed, with a DOCTYPE,
        nested deeper than 64, or over 16 MiB.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "a.xml")
        ...     _ = file.write_text("<annotation>\n<name>dog</name>\n</annotation>")
        ...     root = read_xml(file)
        >>> root.tag, root.value("name"), root.find("name").line
        ('annotation', 'dog', 2)
    """
    tree = _Tree()
    try:
        if file.stat().st_size > MAX_BYTES:
            return Problem(file, None, f"more than {MAX_BYTES >> 20} MiB of annotations")
        tree.parser.Parse(file.read_bytes(), True)
    except OSError as exc:
        return Problem(file, None, f"can't be read: {exc.strerror or exc}")
    except expat.ExpatError as exc:
        return Problem(file, exc.lineno, f"not XML: {expat.errors.messages[exc.code]}")
    except (LookupError, ValueError) as exc:
        return Problem(file, 1, f"its encoding isn't known: {exc}")
    except _Refused as exc:
        return Problem(file, tree.parser.CurrentLineNumber, str(exc))
    return tree.path[0].children[0]


def place_of(file: Path, element: Element) -> Place:
    """Returns where an element begins.

    Example:
        >>> str(place_of(Path("a.xml"), Element("object", 12)))
        'a.xml, line 12'
    """
    return Place(file, element.line)
