"""The one check of schema versions: of specs, sidecars and branch files."""

from __future__ import annotations

from sigcam.core.errors import SchemaError


def check_schema_version(found: object, own: int, what: str, remedy: str) -> None:
    """Refuses a file whose schema isn't the one that this sigcam writes and reads.

    Args:
        found: the `schema_version` that the file carries, whatever it is.
        own: the version that this sigcam reads.
        what: the file or its part, for the message.
        remedy: what brings it to this version, such as "export the model again".

    Raises:
        SchemaError: another version.

    Example:
        >>> check_schema_version(3, 2, "the spec", "export the model again")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.core.errors.SchemaError: the spec has schema version 3, this sigcam reads 2; ...
    """
    if isinstance(found, int) and not isinstance(found, bool):
        if found == own:
            return
        if found > own:
            remedy = f"upgrade sigcam or {remedy}"
    raise SchemaError(f"{what} has schema version {found!r}, this sigcam reads {own}; {remedy}")
