"""`explain()` from a JPEG in memory to the map, against the engine's run alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import markdown
from harness import plots as drawing
from harness.context import Context
from harness.engines import FP32, THREADS, open_engine
from harness.measure import measure as time_calls
from harness.networks import jpeg, picture

from sigcam.runtime.artifact import read_spec
from sigcam.runtime.backends.base import Backend
from sigcam.runtime.geometry import prepare
from sigcam.runtime.session import Session

Figures = dict[str, Any]

NETWORKS = ("resnet50", "wsol-resnet50", "efficientnet_lite0")
QUICK = ("efficientnet_lite0",)
SIZES = {"640x480": (480, 640), "1920x1080": (1080, 1920), "4000x3000": (3000, 4000)}
QUICK_SIZES = {"640x480": (480, 640)}
LIMIT = 1.08
LIMITED = ("resnet50", "640x480")

TEXT = f"""
`Session.explain` from the bytes of a JPEG file to the map in the picture's own size, over the
engine's run on the prepared input, method cam, ONNX Runtime fp32, {THREADS} threads, batch 1.
"decoded" is the same from a decoded picture. The target is at most {LIMIT} for a 640x480 JPEG on
ResNet-50.
"""


def measure(context: Context) -> Figures:
    """Ratios by network and size of the picture."""
    sizes = QUICK_SIZES if context.quick else SIZES
    found: Figures = {}
    for name in context.chosen(NETWORKS, QUICK):
        path = context.network(name).artifact("cam")
        engine = open_engine(FP32, path)
        with Session(read_spec(path), engine) as session:
            found[name] = {
                label: _case(context, session, engine, size) for label, size in sizes.items()
            }
        context.say(f"  {name}: {found[name]['640x480']['ratios']['from a JPEG']['ratio']}")
    return {"networks": found}


def _case(context: Context, session: Session, engine: Backend, size: tuple[int, int]) -> Figures:
    image = picture(*size)
    file = jpeg(image)
    if session.explain(file)[0].map.shape != size:
        raise SystemExit("explain() gave no map of the picture's size; nothing was timed")
    feeds = {"image": prepare(image, session.spec.geometry)[0][None]}
    return time_calls(
        {
            "engine": lambda: engine.infer(feeds),
            "from a JPEG": lambda: session.explain(file)[0].map,
            "decoded": lambda: session.explain(image)[0].map,
        },
        {"from a JPEG": "engine", "decoded": "engine"},
        context.effort,
    )


def section(figures: Figures) -> str:
    """One row for each network and size."""
    rows = []
    for name, sizes in figures["networks"].items():
        for label, row in sizes.items():
            times = [markdown.ms(row["ms"][k]) for k in ("engine", "from a JPEG", "decoded")]
            limit = LIMIT if (name, label) == LIMITED else None
            ratios = [
                markdown.ratio(row["ratios"]["from a JPEG"]["ratio"], limit),
                markdown.ratio(row["ratios"]["decoded"]["ratio"]),
            ]
            rows.append([name, label, *times, *ratios])
    head = [
        "network", "picture", "engine, ms", "explain() from a JPEG, ms", "decoded, ms",
        "from a JPEG over engine", "decoded over engine",
    ]  # fmt: skip
    title = "\n### End to end from a JPEG: explain() over the bare engine\n"
    return title + TEXT + markdown.table(head, rows)


def plots(figures: Figures, folder: Path) -> list[Path]:
    """What explain() adds to the engine's run."""
    cases = [
        (f"{name}\n{label}", row)
        for name, sizes in figures["networks"].items()
        for label, row in sizes.items()
    ]
    series = {
        which: [row["ratios"][which]["ratio"] for _, row in cases]
        for which in ("from a JPEG", "decoded")
    }
    title = "End to end: explain() over the engine's run"
    names = [name for name, _ in cases]
    lines = {f"target for {' '.join(LIMITED)}": LIMIT}
    return [
        drawing.bars(folder / "end_to_end.png", title, "times the engine", names, series, lines)
    ]
