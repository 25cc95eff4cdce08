"""Runs the demo: exports, explains, times, and writes the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sigcam.core.errors import ImageError
from sigcam.demo.network import load_network
from sigcam.demo.page import Panel, ShiftRow, write_page
from sigcam.demo.shift import SHIFTS, Shift, shift_softmax
from sigcam.demo.timing import Timing, alternate
from sigcam.export import ExportOptions, export_artifact, export_classifier
from sigcam.images.decode import read_image
from sigcam.runtime.backends import backend_class
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.model import ExportedModel
from sigcam.runtime.session import Session, load

if TYPE_CHECKING:
    from sigcam.classifier.build import BuiltClassifier


CHOICES: Mapping[str, ExportOptions] = {
    "softmax": ExportOptions(branch="softmax", nwc=False),
    "centred": ExportOptions(branch="centred", nwc=False),
    "sigmoid": ExportOptions(),
}
"""The maps that the demo compares, by the names that `page.TITLES` gives titles to."""


@dataclass(frozen=True)
class Artifacts:
    """The files that the demo exports into its folder.

    Attributes:
        maps: the artifact of each of `CHOICES`.
        classifier: the network alone.
        shifted: for each shift of the softmax weights the artifact of each of `CHOICES`.
    """

    maps: Mapping[str, Path]
    classifier: Path
    shifted: tuple[tuple[Shift, Mapping[str, Path]], ...]


def run_demo(
    images: Sequence[Path], out: Path, say: Callable[[str], None], rounds: int = 150
) -> Path:
    """Writes `out/index.html`, with the exported graphs beside it.

    Args:
        images: the photographs; one that can't be read is reported and left out.
        out: folder for the page and the graphs.
        say: takes one line of progress.
        rounds: alternating rounds of the timing.

    Returns:
        The page's path.

    Raises:
        ImageError: none of the images can be read.

    Example:
        run_demo(shipped_images(), Path("demo"), print)  # demo/index.html
    """
    say("loading EfficientNet-Lite0 and its sigmoid branch")
    network = load_network()
    artifacts = export_all(network, out, say)
    panels: list[Panel] = []
    with ExitStack() as stack:
        sessions = {name: stack.enter_context(load(path)) for name, path in artifacts.maps.items()}
        for path in images:
            say(f"explaining {path.name}")
            try:
                image = read_image(path)
            except ImageError as exc:
                say(f"left out: {exc}")
                continue
            found = {name: session.explain(image)[0] for name, session in sessions.items()}
            panels.append(Panel(path.name, found))
        if not panels:
            raise ImageError("none of the images could be read; see the messages above")
        rows = explain_shifts(artifacts, panels)
        say("timing, classification alone and with the map, alternating")
        timing = time_all(sessions["sigmoid"], artifacts, panels[0], rounds)
    page = write_page(out / "index.html", panels, rows, timing, network.trained_on or "")
    say(f"done: {page}")
    return page


def export_all(network: BuiltClassifier, out: Path, say: Callable[[str], None]) -> Artifacts:
    """Exports what the demo compares: every map, each shift, classification alone."""
    say("exporting the classic map's artifact, the centred one's and the sigmoid branch's")
    maps = _export_maps(network, out, "")
    say("exporting the bare classifier")
    classifier = out / "classifier.onnx"
    export_classifier(network, classifier)
    shifted = []
    for shift in SHIFTS:
        say(f"exporting all again, the softmax branch shifted: {shift.text}")
        moved = replace(network, dual=shift_softmax(network.dual, shift))
        shifted.append((shift, _export_maps(moved, out, f"shift-{shift.name}-")))
    return Artifacts(maps, classifier, tuple(shifted))


def _export_maps(network: BuiltClassifier, out: Path, prefix: str) -> dict[str, Path]:
    files = {name: out / f"{prefix}{name}.onnx" for name in CHOICES}
    for name, options in CHOICES.items():
        export_artifact(network, files[name], options)
    return files


def explain_shifts(artifacts: Artifacts, panels: Sequence[Panel]) -> list[ShiftRow]:
    """Explains every image with every shifted model."""
    rows = [ShiftRow("as trained", {name: [p.maps[name] for p in panels] for name in CHOICES})]
    for shift, files in artifacts.shifted:
        found = {}
        for name, file in files.items():
            with load(file) as session:
                found[name] = [session.explain(panel.maps[name].image)[0] for panel in panels]
        rows.append(ShiftRow(shift.text, found))
    return rows


def time_all(session: Session, artifacts: Artifacts, panel: Panel, rounds: int) -> Timing:
    """Times classification alone, with the map, and the whole explain(), in one run.

    Backend figures are for the prepared input; explain() takes the decoded image and
    ends with the map in the image's own size.
    """
    from sigcam.images.preprocess import prepare

    options = BackendOptions(spinning=False)  # two backends would spin against each other
    kind = backend_class(session.backend_name)
    image = panel.maps["sigmoid"].image
    prepared, _ = prepare(image, session.spec.preprocessing)
    feeds = {"image": prepared[None]}
    plain = kind.open(artifacts.classifier, options)
    control = kind.open(artifacts.classifier, options)
    fused = kind.open(artifacts.maps["sigmoid"], options)
    session = Session(ExportedModel(session.spec, fused))
    try:
        return alternate(
            {
                "classification": lambda: plain.infer(feeds),
                "control": lambda: control.infer(feeds),
                "with_map": lambda: fused.infer(feeds),
                "explain": lambda: session.explain(image)[0].heatmap,
            },
            rounds,
        )
    finally:
        for backend in (plain, control, fused):
            backend.close()
