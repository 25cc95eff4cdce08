"""Why a request is refused, and with which status."""

from __future__ import annotations

from sigcam.core.errors import SigcamError

__all__ = ["GONE", "RequestError", "client_has_gone", "not_found", "overloaded", "too_late"]

GONE = 499
"""The status that is noted for a request whose client has gone."""


class RequestError(SigcamError):
    """A request that isn't answered as it was meant.

    Attributes:
        status: the HTTP status; of 400 to 499 where the client can do something about it.
        retry_after: seconds after which it may be tried again; None where that won't help.

    Example:
        >>> error = RequestError("the shape is missing")
        >>> error.status, str(error)
        (400, 'the shape is missing')
    """

    def __init__(self, message: str, status: int = 400, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


def not_found(model: str, version: str | None = None) -> RequestError:
    """Returns the error for a model, or a version of it, that isn't served.

    Example:
        >>> str(not_found("cats")), str(not_found("cats", "3"))
        ("Request for unknown model: 'cats' is not found", "Request for unknown model: 'cats' \
version 3 is not found")
    """
    which = f"'{model}'" if version is None else f"'{model}' version {version}"
    return RequestError(f"Request for unknown model: {which} is not found", 404)


def overloaded(model: str, images: int, retry_after: int = 1) -> RequestError:
    """Returns the error for a request that comes when the queue is full.

    Args:
        model: the model's name.
        images: how many images wait or are in work at most.
        retry_after: seconds.

    Example:
        >>> overloaded("cats", 32).status
        429
    """
    return RequestError(
        f"the queue of model '{model}' is full ({images} images); try again later, or ask a "
        "server with more capacity",
        429,
        retry_after,
    )


def client_has_gone() -> RequestError:
    """Returns the error for a request whose client has gone: noted, and told to nobody.

    Example:
        >>> client_has_gone().status == GONE
        True
    """
    return RequestError("the client has gone", GONE)


def too_late() -> RequestError:
    """Returns the error for a request whose time is over.

    Example:
        >>> too_late().status
        503
    """
    return RequestError("Request timeout expired", 503)
