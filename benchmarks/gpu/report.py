"""What check.py found: results of isolated checks, as text and as JSON to send in."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu import summary
from benchmarks.gpu.process import run_process
from sigcam.core.files import write_text

SCHEMA = "sigcam-gpu-check-2"
Status = Literal["passed", "failed", "skipped"]
STATUSES: tuple[Status, ...] = ("passed", "failed", "skipped")

PACKAGES = (
    "sigcam", "numpy", "cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12",
    "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-cu12", "tensorrt-cu13",
    "tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "torch",
)  # fmt: skip
"""Packages whose versions matter to the result."""

_LONGEST = 2000


class CheckFailed(Exception):  # noqa: N818 (what it says is that a check didn't pass)
    """A check didn't pass; `figures` are what was measured."""

    def __init__(self, message: str, figures: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.figures = dict(figures or {})


class CheckSkipped(Exception):  # noqa: N818
    """A check can't be done on this machine."""


@dataclass(frozen=True)
class Result:
    """How a check ended.

    Attributes:
        name: of the check.
        status: "passed", "failed" or "skipped".
        detail: the reason, or a summary.
        seconds: how long it took.
        figures: what was measured.
    """

    name: str
    status: Status
    detail: str
    seconds: float
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        first = self.detail.strip().splitlines()[0] if self.detail.strip() else ""
        return f"{self.status:<8}{self.seconds:7.1f} s  {self.name}" + (f": {first}" * bool(first))


def run_isolated(
    name: str, command: Sequence[str], file: Path, timeout: float, hidden: Sequence[Path] = ()
) -> Result:
    """Runs a check in a process of its own: an error that breaks CUDA there breaks no other.

    A process that crashes or hangs after it has written its result has failed all the same.

    Args:
        name: of the check.
        command: writes {"status", "detail", "figures"} as JSON to `file`.
        file: read afterwards.
        timeout: in seconds; the process, and those that it started, are ended after that.
        hidden: files and folders that the result mustn't tell, besides what looks like a folder.
    """
    file.unlink(missing_ok=True)
    start = time.monotonic()
    done = run_process(command, timeout)
    if done.code is None:
        ended = f"it was stopped after {timeout:g} s"
    else:
        ended = f"its process ended with code {done.code}"
    seconds = round(time.monotonic() - start, 2)
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        status: Status = told["status"]
        if status not in STATUSES:
            raise ValueError(status)
        detail = str(told["detail"])
        figures = {key: _clean(value, hidden) for key, value in dict(told["figures"]).items()}
    except (OSError, ValueError, KeyError, TypeError):
        detail = _with_tail(f"{ended} and left no result", done.stderr)
        return Result(name, "failed", anonymous(detail, hidden), seconds)
    if status != "failed" and done.code != 0:
        detail = _with_tail(f"{ended}, after it had told the result {status!r}", done.stderr)
        status = "failed"
    return Result(name, status, anonymous(detail, hidden), seconds, figures)


def _with_tail(ended: str, said: str) -> str:
    tail = said.strip()[-_LONGEST:]
    return ended + (f":\n{tail}" if tail else "")


def _clean(value: Any, hidden: Sequence[Path]) -> Any:
    """A figure with its texts made anonymous."""
    if isinstance(value, str):
        return anonymous(value, hidden)
    if isinstance(value, dict):
        return {key: _clean(one, hidden) for key, one in value.items()}
    return [_clean(one, hidden) for one in value] if isinstance(value, list) else value


_START = r"(?:~|\.|<tmp>|<path>|[A-Za-z]:)?"
_QUOTED = re.compile(rf"(['\"]){_START}[/\\][^'\"\n]*[/\\]")
_PART = r"[^\s/\\'\":,()]+"
_FOLDER = r"(?:\w[\w-]*(?!\.?\w|-))?"  # a last part without a suffix
_BARE = re.compile(rf"(?<![\w.~<>/\\]){_START}(?:/(?!/)|\\{{1,2}})(?:{_PART}[/\\]+)+{_FOLDER}")


def anonymous(text: str, hidden: Sequence[Path] = ()) -> str:
    """The text without this machine's folders, names of its user or of itself.

    A path that isn't quoted ends at a space: folders whose names have some are found in
    quotes, and where they are `hidden`.
    """
    for known in sorted(map(str, hidden), key=len, reverse=True):
        if len(known) > 1:
            text = text.replace(known, "<path>")
    folders = {str(Path.home()): "~", str(Path.cwd()): ".", tempfile.gettempdir(): "<tmp>"}
    for folder in sorted(folders, key=len, reverse=True):
        if len(folder) > 1:
            text = text.replace(folder, folders[folder])
    # What is left of paths: only a file's name says anything to somebody else, and that has a
    # suffix. In lists such as LD_LIBRARY_PATH the last part is a folder's name.
    text = re.sub(r"\bfile:/+", "file:/", text)
    text = _QUOTED.sub(r"\1<path>/", text)
    text = _BARE.sub("<path>/", text)
    for name in (_user(), platform.node()):
        if len(name) > 2:
            text = re.sub(rf"\b{re.escape(name)}\b", "<name>", text)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user without a name
        return ""


def versions() -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # noqa: PERF203 (there are few)
            continue
    return found


def machine(gpus: Iterable[Any], driver: tuple[int, int]) -> dict[str, Any]:
    """What the figures depend on; nothing that names the machine or its user."""
    return {
        "gpus": [
            {
                "name": gpu.name,
                "capability": "{}.{}".format(*gpu.capability),
                "multiprocessors": gpu.multiprocessors,
            }
            for gpu in gpus
        ],
        "driver_cuda": "{}.{}".format(*driver),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


@dataclass
class Report:
    """All results, in the order in which they came."""

    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    results: list[Result] = field(default_factory=list)

    def exit_code(self, *, must_compare: bool) -> int:
        """1 if a check failed, or no kernel's values were right though they must be; else 0."""
        failed = any(result.status == "failed" for result in self.results)
        return int(failed or (must_compare and not self.compared))

    @property
    def compared(self) -> bool:
        """Whether the kernels' values were compared and right."""
        return any(one.name == "values" and one.status == "passed" for one in self.results)

    def to_json(self) -> str:
        """The report as one JSON object with its schema."""
        data = {
            "schema": SCHEMA,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "results": [asdict(result) for result in self.results],
        }
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        """Writes the JSON, whole or not at all."""
        write_text(path, self.to_json())

    def summary(self, *, must_compare: bool) -> str:
        """How many checks ended how."""
        counts = {s: sum(r.status == s for r in self.results) for s in STATUSES}
        said = ", ".join(f"{count} {status}" for status, count in counts.items())
        if self.compared or not must_compare:
            return said
        return f"{said}; the kernels' values weren't shown to be right"

    def text(self, *, must_compare: bool) -> str:
        """The report in two screens."""
        told = summary.text(self.machine, self.versions, self.results)
        return f"{told}\n{self.summary(must_compare=must_compare)}"
