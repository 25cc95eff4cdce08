"""What a graph computes: the options of an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sigcam.core.errors import UsageError
from sigcam.core.spec import Branch, ClassSelection, Profile
from sigcam.export.cam import FINER_OPTIONS
from sigcam.export.methods import method_of


@dataclass(frozen=True)
class GraphOptions:
    """What the graph computes; see `export_artifact` for the meaning of each.

    Raises:
        UsageError: options that contradict each other.
    """

    method: str = "cam"
    branch: Branch = "sigmoid"
    nwc: bool | None = None
    profile: Profile = "fused"
    classes: ClassSelection = field(default_factory=ClassSelection)
    has_sigmoid: bool = True
    sigmoid_logits: bool = False
    features: bool = False
    method_options: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        method = method_of(self.method)
        if self.nwc and not method.clamps:
            raise UsageError(
                f"{self.method} has a weight for each position and isn't clamped (clamping "
                f"would make hirescam layercam); leave nwc out, or choose another method"
            )
        if self.nwc is None:
            object.__setattr__(self, "nwc", method.clamps)
        if not self.has_sigmoid and (self.branch == "sigmoid" or self.sigmoid_logits):
            wanted = "branch='sigmoid'" if self.branch == "sigmoid" else "sigmoid_logits=True"
            raise UsageError(
                f"{wanted} needs a trained sigmoid branch, but has_sigmoid is False; load one, "
                f"or export with branch='softmax' and without sigmoid_logits"
            )
        known = FINER_OPTIONS if method.contrasts else {}
        unknown = sorted(self.method_options.keys() - known.keys())
        if unknown:
            raise UsageError(
                f"{' and '.join(unknown)} is no option of {self.method}"
                + (f", which has {' and '.join(sorted(known))}" if known else "")
                + "; leave it out"
            )
        object.__setattr__(self, "method_options", {**known, **self.method_options})
        if method.contrasts:
            gamma, similar = self.method_options["gamma"], self.method_options["similar"]
            numbers = all(isinstance(value, (int, float)) for value in (gamma, similar))
            # NaN and infinity fail these comparisons.
            if not numbers or not 0 <= gamma <= 10 or not 1 <= similar <= 1000 or similar % 1:
                raise UsageError(
                    f"finercam takes gamma from 0 to 10 and a whole number of similar classes "
                    f"of at least 1, got gamma={gamma} and similar={similar}"
                )
