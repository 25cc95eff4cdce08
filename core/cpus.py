"""How many processors this process may use.

A machine's number of processors says little in a container: a quota of the kernel's control groups
(Docker's `--cpus`, Kubernetes' limits) stops all threads together when they have used their share
of a period, so that more threads than the quota's processors wait for each other; and `taskset`
or a cpuset leaves only some processors. Backends look at the machine by themselves, so they are
told a number where there is such a limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cpu_quota", "thread_limit", "usable_cpus", "wait_asleep"]

_ROOT = Path("/")


def usable_cpus(root: Path = _ROOT) -> int:
    """Returns the number of processors that this process can keep busy, at least 1.

    That is the smaller of the processors that it may run on (taskset, cpusets) and the whole
    processors in its quota; one for a quota of less than one.

    Args:
        root: the folder that /proc and /sys are read below.

    Example:
        >>> 1 <= usable_cpus() <= os.cpu_count()
        True
    """
    allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        allowed = min(allowed, len(os.sched_getaffinity(0)))
    quota = cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def thread_limit(root: Path = _ROOT) -> int | None:
    """Returns the number of threads that a library should compute with; None without a limit.

    That is the smaller of `usable_cpus` and of OMP_NUM_THREADS, where that is set, and None where
    the whole machine may be used: libraries then know best (hyperthreads, slow and fast cores).

    Args:
        root: the folder that /proc and /sys are read below.

    Example:
        >>> from unittest import mock
        >>> with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
        ...     thread_limit()
        1
    """
    limit = usable_cpus(root)
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        return min(limit, int(asked))
    return limit if limit < (os.cpu_count() or 1) else None


def wait_asleep() -> None:
    """Lets OpenMP's threads (PyTorch's) sleep while they wait for work, where nobody said how.

    They wait in a loop otherwise, which is quicker by microseconds on a machine of one's own. A
    command that runs a few images through a network and traces it in between keeps the
    processors busy with waiting for half of its time, and waits for itself where others use them.

    It must be called before PyTorch is imported: OpenMP looks at OMP_WAIT_POLICY only then.

    Example:
        >>> from unittest import mock
        >>> with mock.patch.dict(os.environ, OMP_WAIT_POLICY="active"):
        ...     wait_asleep()
        ...     os.environ["OMP_WAIT_POLICY"]
        'active'
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Returns the processors that control groups allow this process; None without a limit.

    Groups are nested, and the smallest quota of a group and all above it counts.

    Args:
        root: the folder that /proc and /sys are read below.

    Example:
        cpu_quota()  # 0.5 in a container of `docker run --cpus 0.5`
    """
    quotas = [_quota_of(folder) for folder in _groups(root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _groups(root: Path) -> Iterator[Path]:
    """Yields the folders of the control groups that limit this process's processors."""
    mounts = list(_mounts(root))
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        is_unified = number == "0" and not controllers
        if not is_unified and "cpu" not in controllers.split(","):
            continue
        for kind, options, base, place in mounts:
            if kind != ("cgroup2" if is_unified else "cgroup"):
                continue
            if not is_unified and "cpu" not in options.split(","):
                continue
            # In a container, what is mounted may be the group itself, and its name outside.
            inside = group.removeprefix(base.rstrip("/")) if _is_below(group, base) else "/"
            parts = [part for part in inside.split("/") if part]
            top = root / place.lstrip("/")
            if ".." in parts:  # a group that lies outside of what this process can see
                parts = []
            for count in range(len(parts), -1, -1):
                yield top.joinpath(*parts[:count])


def _mounts(root: Path) -> Iterator[tuple[str, str, str, str]]:
    """Yields type, options, root and place of each mounted file system."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(), after.split()
        if len(fields) >= 5 and len(rest) >= 3:
            yield rest[0], rest[2], _unescaped(fields[3]), _unescaped(fields[4])


def _is_below(group: str, base: str) -> bool:
    return base == "/" or group == base or group.startswith(f"{base}/")


def _quota_of(folder: Path) -> float | None:
    """Returns the quota of one group in processors, by either version's files."""
    words = _text(folder / "cpu.max").split()
    if not words:
        words = [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        quota, period = int(words[0]), int(words[1])
    except (ValueError, IndexError):  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


def _unescaped(text: str) -> str:
    """Undoes the kernel's way to write spaces and the like in the names of mounts."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
