"""What the project set out to reach, in one place, and how the page says what was reached.

Each part's `reached(figures)` gives its own targets' figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.harness import markdown


@dataclass(frozen=True)
class Target:
    """A figure that is wanted.

    Attributes:
        part: of the benchmark, that measures it.
        text: what the figure is, with its scope.
        limit: the most that is allowed, or with `least` the least.
        least: which of the two.
        unit: written behind both figures.
    """

    part: str
    text: str
    limit: float
    least: bool = False
    unit: str = ""

    def met(self, value: float) -> bool:
        """Whether a figure is within the limit."""
        return value >= self.limit if self.least else value <= self.limit


@dataclass(frozen=True)
class Reached:
    """What a part found for a target.

    Attributes:
        values: median, low and high, or one figure alone; empty where there is none.
        note: which case it is of; without a figure, why there is none.
    """

    values: Sequence[float]
    note: str = ""


LIMITED_METHODS = ("cam", "gradcam", "gradcam++", "xgradcam", "layercam")
FORMS = ("wsol-vgg16", "wsol-resnet50", "wsol-inceptionv3")

TARGETS: dict[str, Target] = {
    "map": Target(
        "methods",
        f"backend only: map over classification, {', '.join(LIMITED_METHODS)} on the three "
        "localisation forms, the worst of them",
        1.01,
    ),
    "mlp_int8_head": Target(
        "methods", "backend only: the same, gradcam on VGG-16, sigmoid head stored in 8 bits", 1.03
    ),
    "mlp": Target("methods", "backend only: the same, gradcam on VGG-16, fp32", 1.10),
    "explain": Target(
        "end_to_end", "explain() from a 640x480 JPEG over the bare backend, ResNet-50", 1.05
    ),
    "peer_fp32": Target(
        "peers", "times as fast as grad-cam's Grad-CAM, ResNet-50, batch 1: fp32", 6.0, least=True
    ),
    "peer_bf16": Target("peers", "the same in bf16", 11.0, least=True),
    "peer_int8": Target("peers", "the same in int8", 17.0, least=True),
    "int8_correlation": Target(
        "precisions",
        "correlation of int8's CAMs with fp32's, EfficientNet-Lite0 with trained weights, "
        "held-out images, mean",
        0.98,
        least=True,
    ),
    "classes": Target(
        "scaling", "backend only: CAMs of 100 classes over those of one, ResNet-50", 1.10
    ),
    "classes_cams": Target(
        "end_to_end", "the same from a 640x480 JPEG by explain(), CAMs only", 1.10
    ),
    "classes_maps": Target(
        "end_to_end", "the same with all maps made, as one array of bytes", 1.20
    ),
    "training": Target(
        "training", "times less time to train the head to the same loss", 30.0, least=True
    ),
    "memory": Target(
        "memory", "peak memory of `sigcam explain` on 1,000 images, ResNet-50 fp32", 400.0,
        unit=" MB",
    ),
    "memory_flat": Target(
        "memory", "the same, over the peak on 100 images (flat)", 1.05
    ),
    "backend_busy": Target(
        "memory", "share of the time that the backend runs meanwhile", 0.9, least=True
    ),
}  # fmt: skip
"""In the order of the page."""


def table(
    found: Mapping[str, Reached | None], doubts: Mapping[str, str], targets: Mapping[str, Target]
) -> str:
    """Markdown: every target with its figure.

    Args:
        found: by target; None or nothing where it wasn't measured.
        doubts: by part, why its figures aren't to be trusted.
        targets: all of them.
    """
    rows = []
    for name, target in targets.items():
        wanted = f"at {'least' if target.least else 'most'} {target.limit:g}{target.unit}"
        one = found.get(name)
        if one is None:
            cells = ["not measured", "", ""]
        elif not one.values:
            cells = [one.note, "", ""]
        else:
            met = "met" if target.met(one.values[0]) else "**missed**"
            cells = [_figure(one.values) + target.unit, met + doubts.get(target.part, ""), one.note]
        rows.append([target.text, wanted, *cells, f"`{target.part}`"])
    return markdown.table(["target", "wanted", "reached", "", "which", "part"], rows)


def _figure(values: Sequence[float]) -> str:
    return markdown.ratio(values) if len(values) == 3 else f"{values[0]:.4g}"
