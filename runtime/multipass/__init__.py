"""Methods of several passes or without gradient, by name, on any artifact and backend.

| method | passes over the network | passes over the head |
|---|---|---|
| scorecam | N + 1 at most | 0 |
| ablationcam | 1 | N + 1 at most |
| eigencam | 1 | 0 |
| rise | masks + 1 | 0 |

N is the number of channels of the features. The values are "module:class" strings, so
that listing the methods imports none.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping

from sigcam.core.errors import UsageError
from sigcam.runtime.model import ExportedModel
from sigcam.runtime.multipass.base import NO_OPTIONS, MultiPass

MULTIPASS: dict[str, str] = {
    "scorecam": "sigcam.runtime.multipass.scorecam:ScoreCam",
    "ablationcam": "sigcam.runtime.multipass.ablationcam:AblationCam",
    "eigencam": "sigcam.runtime.multipass.eigencam:EigenCam",
    "rise": "sigcam.runtime.multipass.rise:Rise",
}


def multipass_method(
    name: str | None,
    model: ExportedModel,
    batch_size: int,
    options: Mapping[str, float] = NO_OPTIONS,
) -> MultiPass | None:
    """Returns the method of that name, ready for use; None for one whose CAMs the graph gives.

    Args:
        name: a key of `MULTIPASS`, or the artifact's own method, which None stands for too.
        model: runs the network and its head graph.
        batch_size: most images in one run of the network.
        options: numbers that the method is called with, by name.

    Raises:
        UsageError: another name, an option that the method doesn't have, or an artifact that
            lacks what it needs.

    Example:
        method = multipass_method("scorecam", model, batch_size=8)
    """
    own = model.spec.method
    name = name or own
    if name == own and own not in MULTIPASS:
        if options:
            raise UsageError(
                f"{' and '.join(sorted(options))} is no option of the artifact's own method, which "
                "was built into its graph; leave it out, or name a method that has it (rise)"
            )
        return None
    if name not in MULTIPASS:
        raise UsageError(
            f"this artifact has the method {own}; beside it, method may be one of "
            f"{', '.join(MULTIPASS)}, got {name!r}; a method in the graph is chosen by "
            "`sigcam export --method`"
        )
    found: type[MultiPass] = pkgutil.resolve_name(MULTIPASS[name])
    return found(model, batch_size, options)
