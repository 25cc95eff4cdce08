"""Runs the demo: exports, explains, times, and writes the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class Artifacts:
    """The files that the demo exports into its folder."""

    sigmoid: Path
    softmax: Path
    classifier: Path
    shifted: tuple[tuple[Shift, Path, Path], ...]  # softmax file, sigmoid file


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
    with load(artifacts.sigmoid) as sigmoid, load(artifacts.softmax) as softmax:
        for path in images:
            say(f"explaining {path.name}")
            try:
                image = read_image(path)
            except ImageError as exc:
                say(f"left out: {exc}")
                continue
            panels.append(Panel(path.name, softmax.explain(image)[0], sigmoid.explain(image)[0]))
        if not panels:
            raise ImageError("none of the images could be read; see the messages above")
        rows = explain_shifts(artifacts, panels)
        say("timing, classification alone and with the map, alternating")
        timing = time_all(sigmoid, artifacts, panels[0], rounds)
    page = write_page(out / "index.html", panels, rows, timing, network.trained_on or "")
    say(f"done: {page}")
    return page


def export_all(network: BuiltClassifier, out: Path, say: Callable[[str], None]) -> Artifacts:
    """Exports what the demo compares: both branches, each shift, classification alone."""
    classic = ExportOptions(branch="softmax", nwc=False)
    sigmoid, softmax, classifier = (
        out / f"{name}.onnx" for name in ("sigmoid", "softmax", "classifier")
    )
    say("exporting the sigmoid branch's artifact")
    export_artifact(network, sigmoid)
    say("exporting the softmax branch's artifact (classic CAM) and the bare classifier")
    export_artifact(network, softmax, classic)
    export_classifier(network, classifier)
    shifted = []
    for shift in SHIFTS:
        say(f"exporting both again, the softmax branch shifted: {shift.text}")
        moved = replace(network, dual=shift_softmax(network.dual, shift))
        files = [out / f"shift-{shift.name}-{branch}.onnx" for branch in ("softmax", "sigmoid")]
        export_artifact(moved, files[0], classic)
        export_artifact(moved, files[1])
        shifted.append((shift, files[0], files[1]))
    return Artifacts(sigmoid, softmax, classifier, tuple(shifted))


def explain_shifts(artifacts: Artifacts, panels: Sequence[Panel]) -> list[ShiftRow]:
    """Explains every image with every shifted model."""
    rows = [ShiftRow("as trained", [p.softmax for p in panels], [p.sigmoid for p in panels])]
    for shift, softmax_file, sigmoid_file in artifacts.shifted:
        with load(softmax_file) as softmax, load(sigmoid_file) as sigmoid:
            rows.append(
                ShiftRow(
                    shift.text,
                    [softmax.explain(p.softmax.image)[0] for p in panels],
                    [sigmoid.explain(p.sigmoid.image)[0] for p in panels],
                )
            )
    return rows


def time_all(session: Session, artifacts: Artifacts, panel: Panel, rounds: int) -> Timing:
    """Times classification alone, with the map, and the whole explain(), in one run.

    Backend figures are for the prepared input; explain() takes the decoded image and
    ends with the map in the image's own size.
    """
    from sigcam.images.preprocess import prepare

    options = BackendOptions(spinning=False)  # two backends would spin against each other
    kind = backend_class(session.backend_name)
    image = panel.sigmoid.image
    prepared, _ = prepare(image, session.spec.preprocessing)
    feeds = {"image": prepared[None]}
    plain = kind.open(artifacts.classifier, options)
    control = kind.open(artifacts.classifier, options)
    fused = kind.open(artifacts.sigmoid, options)
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
