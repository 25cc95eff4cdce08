"""The token that requests bear, over HTTP as over gRPC."""

from __future__ import annotations

import hmac

__all__ = ["bears"]


def bears(authorization: str | None, token: str) -> bool:
    """Says whether a request bears the token; takes as long whatever it bears.

    Args:
        authorization: its header, or metadata, of that name; None without it.
        token: that it must bear.

    Example:
        >>> bears("Bearer abc", "abc"), bears("abc", "abc"), bears(None, "abc")
        (True, False, False)
    """
    kind, _, given = (authorization or "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("latin-1", "replace"), token.encode())
    return same and kind.lower() == "bearer"
