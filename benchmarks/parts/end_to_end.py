"""`explain()` from a JPEG in memory to the map, against the backend's run alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.harness import markdown
from benchmarks.harness import plots as drawing
from benchmarks.harness.backends import FP32, THREADS, open_graph
from benchmarks.harness.context import Context
from benchmarks.harness.measure import measure as time_calls
from benchmarks.harness.networks import Network, jpeg, random_image
from benchmarks.harness.targets import TARGETS, Reached
from sigcam.core.artifact import read_spec
from sigcam.core.spec import ClassSelection
from sigcam.images.preprocess import prepare
from sigcam.runtime.backends.base import Backend
from sigcam.runtime.model import ExportedModel
from sigcam.runtime.session import Session
from sigcam.runtime.several import stack_heatmaps

Figures = dict[str, Any]

NETWORKS = ("resnet50", "wsol-resnet50", "efficientnet_lite0")
QUICK = ("resnet18",)
SIZES = {"640x480": (480, 640), "1920x1080": (1080, 1920), "4000x3000": (3000, 4000)}
QUICK_SIZES = {"640x480": (480, 640)}
LIMIT, CLASSES_LIMIT = TARGETS["explain"].limit, TARGETS["classes_maps"].limit
LIMITED = ("resnet50", "640x480")
CLASSES = 100
KINDS = {"cams": "cams", "bytes": "map", "floats": "map", "heatmaps": "map"}
"""What is made of all classes, and of one."""

TEXT = f"""
`Session.explain` from the bytes of a JPEG file to the map in the image's own size, over the
backend's run on the prepared input, method cam, ONNX Runtime fp32, {THREADS} threads, batch 1.
"decoded" is the same from a decoded image. The target is at most {LIMIT} for a 640x480 JPEG on
ResNet-50.
"""

CLASSES_TEXT = f"""
`Session.explain(file, classes=[...])` of an artifact with `--classes input`, from the bytes of a
640x480 JPEG file: {CLASSES} classes over one, after one pass of the backbone each. "cams" are the
maps at feature resolution, which `explain` returns. The others are all enlarged to the image:
"bytes" as one uint8 array by `stack_heatmaps`, "floats" as one float32 array likewise, "heatmaps"
by `Explanation.heatmap`, which each Explanation keeps; one class is its `heatmap`. The target is
at most {CLASSES_LIMIT:.2f} times the time of one for "bytes". What the others take longer is new
memory: 123 MB for {CLASSES} maps of float32.
"""


def measure(context: Context) -> Figures:
    """Ratios by network and size of the image."""
    sizes = QUICK_SIZES if context.quick else SIZES
    found: Figures = {}
    classes: Figures = {}
    for name in context.chosen(NETWORKS, QUICK):
        network = context.network(name)
        path = network.artifact("cam")
        backend = open_graph(FP32, path)
        with Session(ExportedModel(read_spec(path), backend)) as session:
            found[name] = {
                label: _case(context, session, backend, size) for label, size in sizes.items()
            }
        context.say(f"  {name}: {found[name]['640x480']['ratios']['from a JPEG']['ratio']}")
        classes[name] = _classes(context, network)
        context.say(f"  {name}, classes: {classes[name]['pairs']}")
    return {"networks": found, "classes": classes}


def _classes(context: Context, network: Network) -> Figures:
    path = network.artifact("cam", classes=ClassSelection("input"))
    file = jpeg(random_image(480, 640))
    with Session(ExportedModel(read_spec(path), open_graph(FP32, path))) as session:
        many = min(CLASSES, session.spec.num_classes)

        def cams(count: int) -> Any:
            return session.explain(file, classes=list(range(count)))

        timed = time_calls(
            {
                "1, cams": lambda: cams(1),
                "1, map": lambda: cams(1)[0].heatmap,
                "all, cams": lambda: cams(many),
                "all, bytes": lambda: stack_heatmaps(cams(many)),
                "all, floats": lambda: stack_heatmaps(cams(many), "float32"),
                "all, heatmaps": lambda: [found.heatmap for found in cams(many)],
            },
            {},
            context.effort,
            {kind: (f"all, {kind}", f"1, {base}") for kind, base in KINDS.items()},
        )
    return {**timed, "count": many}


def _case(context: Context, session: Session, backend: Backend, size: tuple[int, int]) -> Figures:
    image = random_image(*size)
    file = jpeg(image)
    if session.explain(file)[0].heatmap.shape != size:
        raise SystemExit("explain() gave no map of the image's size; nothing was timed")
    feeds = {"image": prepare(image, session.spec.preprocessing)[0][None]}
    return time_calls(
        {
            "backend": lambda: backend.infer(feeds),
            "from a JPEG": lambda: session.explain(file)[0].heatmap,
            "decoded": lambda: session.explain(image)[0].heatmap,
        },
        {"from a JPEG": "backend", "decoded": "backend"},
        context.effort,
    )


def section(figures: Figures) -> str:
    """One row for each network and size."""
    rows = []
    for name, sizes in figures["networks"].items():
        for label, row in sizes.items():
            times = [markdown.ms(row["ms"][k]) for k in ("backend", "from a JPEG", "decoded")]
            limit = LIMIT if (name, label) == LIMITED else None
            ratios = [
                markdown.ratio(row["ratios"]["from a JPEG"]["ratio"], limit),
                markdown.ratio(row["ratios"]["decoded"]["ratio"]),
            ]
            rows.append([name, label, *times, *ratios])
    head = [
        "network", "image", "backend, ms", "explain() from a JPEG, ms", "decoded, ms",
        "from a JPEG over backend", "decoded over backend",
    ]  # fmt: skip
    title = "\n### End to end from a JPEG: explain() over the bare backend\n"
    return title + TEXT + markdown.table(head, rows) + _classes_section(figures["classes"])


def _classes_section(figures: Figures) -> str:
    rows = []
    for name, row in figures.items():
        for kind, base in KINDS.items():
            if kind not in row["pairs"]:  # figures of an earlier day
                continue
            limit = CLASSES_LIMIT if (name, kind) == ("resnet50", "bytes") else None
            times = [markdown.ms(row["ms"][key]) for key in (f"1, {base}", f"all, {kind}")]
            ratio = markdown.ratio(row["pairs"][kind], limit)
            rows.append([name, kind, str(row["count"]), *times, ratio])
    head = ["network", "what", "classes", "one class, ms", "all of them, ms", "over one"]
    title = f"\n### End to end from a JPEG: {CLASSES} classes over one\n"
    return title + CLASSES_TEXT + markdown.table(head, rows)


def reached(figures: Figures) -> dict[str, Reached | None]:
    """explain() from a JPEG, and many classes."""
    found: dict[str, Reached | None] = {}
    name, label = LIMITED
    row = figures["networks"].get(name, {}).get(label)
    if row is not None:
        found["explain"] = Reached(row["ratios"]["from a JPEG"]["ratio"])
    classes = figures["classes"].get(name)
    if classes is not None:
        found["classes_cams"] = Reached(classes["pairs"]["cams"])
        as_bytes = classes["pairs"].get("bytes")
        found["classes_maps"] = None if as_bytes is None else Reached(as_bytes)
    return found


def plots(figures: Figures, folder: Path) -> list[Path]:
    """What explain() adds to the backend's run."""
    cases = [
        (f"{name}\n{label}", row)
        for name, sizes in figures["networks"].items()
        for label, row in sizes.items()
    ]
    series = {
        which: [row["ratios"][which]["ratio"] for _, row in cases]
        for which in ("from a JPEG", "decoded")
    }
    title = "End to end: explain() over the backend's run"
    names = [name for name, _ in cases]
    lines = {f"target for {' '.join(LIMITED)}": LIMIT}
    return [
        drawing.bars(folder / "end_to_end.png", title, "times the backend", names, series, lines)
    ]
