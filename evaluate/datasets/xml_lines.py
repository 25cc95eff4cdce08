"""XML as elements that know their line, from files that nobody vouches for.

A DOCTYPE is refused. Entities can only be declared in one, so neither their expansion (a file of
a kilobyte that becomes gigabytes) nor external files can happen. Annotations have none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from sigcam.evaluate.datasets.sample import Place, Problem

MAX_DEPTH = 64
MAX_BYTES = 16 * 2**20


@dataclass
class Element:
    """An element.

    Attributes:
        tag: its name.
        line: where it begins, counted from 1.
        text: the characters directly in it.
        children: the elements in it.
    """

    tag: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def all(self, tag: str) -> list[Element]:
        """The children of that name."""
        return [child for child in self.children if child.tag == tag]

    def find(self, tag: str) -> Element | None:
        """The first child of that name; None if there is none."""
        return next(iter(self.all(tag)), None)

    def value(self, tag: str) -> str:
        """The text of the first child of that name, without blanks at its ends; "" without one."""
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
    """Reads an XML file.

    Returns:
        Its root element; or what is wrong with it: unreadable, not well-formed, with a DOCTYPE,
        nested deeper than 64, or over 16 MiB.
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
    """Where an element begins."""
    return Place(file, element.line)
