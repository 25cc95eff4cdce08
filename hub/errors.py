"""Turns the errors of huggingface_hub, wherever they lie in a chain, into ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sigcam.core.errors import HubError, SigcamError

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
"""How huggingface_hub is told who asks; sigcam never sees the token."""

_NO_NETWORK = (
    "the Hub can't be reached (or HF_HUB_OFFLINE is set), and its cache has no copy of {name}; try "
    "again with a network, or get the files elsewhere and give their path"
)
_DENIED = (401, 403)


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
    """Raises what the Hub's client raises as a `HubError` that says what to do.

    Args:
        name: the repository, for the message.

    Raises:
        HubError: whatever went wrong between here and the Hub.

    Example:
        >>> with told("owner/name"):  # doctest: +ELLIPSIS
        ...     raise ConnectionError("no route to host")
        Traceback (most recent call last):
            ...
        sigcam.core.errors.HubError: the Hub can't be reached (or HF_HUB_OFFLINE is set), ...
    """
    try:
        yield
    except SigcamError:
        raise
    except Exception as exc:  # the Hub's client and its HTTP client each have errors of their own
        raise hub_error(name, exc) or HubError(
            f"the Hub refused {name}: {type(exc).__name__}: {_first_line(exc)}"
        ) from exc


def hub_error(name: str, error: BaseException) -> HubError | None:
    """Returns the error that tells what the Hub's client said; None if it said nothing known.

    Libraries that use the client raise errors of their own from its errors, so all of the
    chain is looked at.

    Args:
        name: the repository, for the message.
        error: what was raised.

    Example:
        >>> print(hub_error("owner/name", ValueError("no such key")))
        None
    """
    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and seen not in chain:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    words = [found for one in chain if (found := _words(name, one)) is not None]
    return HubError(words[0]) if words else None


def _words(name: str, error: BaseException) -> str | None:
    """Says what one error of the chain means; None if it isn't one of the Hub's."""
    known = _kinds(name)
    for kind in type(error).__mro__:
        if kind.__name__ in known:
            return known[kind.__name__]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in _DENIED:
        return (
            f"the Hub doesn't let you do that with {name} (HTTP {status}); {LOG_IN}, with a token "
            "that has the right"
        )
    return None


def _kinds(name: str) -> dict[str, str]:
    """Returns what to say for the names of the client's errors, which differ in their modules."""
    unreachable = _NO_NETWORK.format(name=name)
    return {
        "GatedRepoError": (
            f"{name} is gated: accept its conditions on https://huggingface.co/{name}, and {LOG_IN}"
        ),
        "RepositoryNotFoundError": (
            f"the Hub has no repository {name}, or it is private; look at the name, or {LOG_IN}"
        ),
        "RevisionNotFoundError": (
            f"{name} has no such revision; leave out what is behind the @, or name a branch, tag "
            "or commit of it"
        ),
        "RemoteEntryNotFoundError": (
            f"the repository {name} has no such file; look at its files on "
            f"https://huggingface.co/{name}/tree/main"
        ),
        "LocalTokenNotFoundError": f"the Hub wants to know who you are; {LOG_IN}",
        "HFValidationError": (
            f"{name!r} is no name of a repository; give owner/name, of letters, digits, - _ and ."
        ),
        "OfflineModeIsEnabled": unreachable,
        "LocalEntryNotFoundError": unreachable,
        "ConnectError": unreachable,
        "ConnectionError": unreachable,
        "TimeoutException": unreachable,
    }


def _first_line(error: BaseException) -> Any:
    return next(iter(str(error).strip().splitlines()), "no reason given")
