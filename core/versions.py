"""The version of sigcam, and those of the packages that take part in a result."""

from __future__ import annotations

__version__ = "0.1.0"


def versions_of(*packages: str) -> dict[str, str]:
    """Returns the installed packages by name with their versions, "sigcam" among them if asked.

    Packages that aren't installed are left out. sigcam's own version is known in a source
    tree too, where no metadata is installed.

    Args:
        packages: distribution names, such as "torch".

    >>> versions_of("sigcam", "no-such-package")["sigcam"] == __version__
    True
    """
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in packages:
        try:
            found[name] = __version__ if name == "sigcam" else version(name)
        except PackageNotFoundError:  # noqa: PERF203 (there are few packages)
            continue
    return found
