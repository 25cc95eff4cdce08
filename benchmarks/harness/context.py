"""What a part is given to work with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.harness.measure import Effort
from benchmarks.harness.networks import Network

Item = TypeVar("Item")


@dataclass(frozen=True)
class Context:
    """How a part is to be run.

    Attributes:
        folder: of the exported files; kept ones are used again.
        effort: how long a case may take.
        quick: whether only a small selection of each part is wanted, in seconds.
        data: folder with the real images (`imagenet_samples`, `pets`).
        networks: instead of the part's own; empty for those.
        say: takes a line of progress.
    """

    folder: Path
    effort: Effort
    quick: bool
    data: Path
    say: Callable[[str], None]
    networks: tuple[str, ...] = ()

    def chosen(self, full: Sequence[str], quick: Sequence[str]) -> Sequence[str]:
        """Names of the networks to measure."""
        return self.networks or self.some(full, quick)

    def some(self, full: Sequence[Item], quick: Sequence[Item]) -> Sequence[Item]:
        """The whole list, or the short one of a quick run."""
        return quick if self.quick else full

    def network(self, name: str, **options: Any) -> Network:
        """A network whose files lie in the context's folder."""
        return Network(name, self.folder, **options)
