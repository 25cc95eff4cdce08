"""One call's work: what it asks for, and how a batch of pictures is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sigcam.runtime.backends.base import MadeMaps
from sigcam.runtime.classes import Request
from sigcam.runtime.further import Further
from sigcam.runtime.multipass.base import MultiPass, Subject, Tools
from sigcam.runtime.outputs import (
    Picture,
    class_results,
    made_maps,
    makes_maps,
    own_grids,
    softmax,
)
from sigcam.runtime.pipeline import Stopwatch
from sigcam.runtime.progress import Report
from sigcam.runtime.result import Explanation

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Work:
    """What one call asks for.

    Attributes:
        request: the classes.
        method: None for the artifact's own.
        wanted: the outputs to read.
        batch_size: most pictures in the first run.
        report: how to tell the progress.
        readers: threads that read pictures ahead; 0: nothing runs ahead.
        engine: runs while the engine does.
    """

    request: Request
    method: MultiPass | None
    wanted: list[str]
    batch_size: int
    report: Report
    readers: int = 0
    engine: Stopwatch = field(default_factory=Stopwatch)


def explain_batch(pictures: list[Picture], work: Work, tools: Tools) -> list[list[Explanation]]:
    """Runs one batch and makes its results.

    Raises:
        BackendError: the engine failed, or what it gave isn't finite.
        ArtifactError: the graph's outputs don't belong together.
    """
    first = pictures[0].tensor
    batch = first[None] if len(pictures) == 1 else np.stack([p.tensor for p in pictures])
    feeds = {"image": batch}
    if work.request.ids is not None:
        feeds["class_ids"] = np.tile(np.array(work.request.ids, np.int64), (len(pictures), 1))
    made: MadeMaps | None = None
    if work.method is None and makes_maps(tools.spec, tools.network):
        with work.engine:
            outputs, made = made_maps(tools.spec, tools.network, feeds, work.wanted, pictures)
    else:
        with work.engine:
            outputs = tools.network.infer(feeds, work.wanted)
        if work.method is None:
            outputs["grids"] = own_grids(outputs, tools.spec)
    results = []
    for row, picture in enumerate(pictures):
        values = {name: array[row] for name, array in outputs.items()}
        maps = None if made is None else _of_classes(made, row)
        results.append(_explain(picture, values, maps, work, tools))
    return results


def _of_classes(made: MadeMaps, row: int) -> list[tuple[Array, bool]]:
    """The map of each class of a picture, read-only, and whether it is valid."""
    maps = made.maps[row]
    maps.setflags(write=False)
    return [(one, bool(valid)) for one, valid in zip(maps, made.valid[row], strict=True)]


def _explain(
    picture: Picture,
    row: Mapping[str, Array],
    maps: list[tuple[Array, bool]] | None,
    work: Work,
    tools: Tools,
) -> list[Explanation]:
    """The results of one picture, from its row of the first run's outputs and finished maps."""
    spec, method, head = tools.spec, work.method, tools.head
    probabilities = softmax(row["logits"])  # first: it refuses what isn't worth more passes
    ids = row["class_ids_out"][: work.request.count]
    if method is None:
        grids, passes = row["grids"][: len(ids)], 1
        work.report(1, 1)
    else:
        subject = Subject(row["features"], ids, picture.tensor)
        with work.engine:
            grids, passes = method.grids(subject, work.report)
    results = class_results(probabilities, ids, row.get("evidence_logits"), grids, spec)
    further = None
    if head is not None:
        shared = results[0].grid
        further = Further(spec, head, method, probabilities, row[head.head_input], shared)
    return [
        Explanation(
            *result,
            method=spec.method if method is None else method.name,
            placement=picture.placement,
            original=picture.original,
            source=picture.source,
            passes=passes,
            further=further,
            made=None if maps is None else maps[rank],
        )
        for rank, result in enumerate(results)
    ]
