"""Imports huggingface_hub when it is first needed."""

from __future__ import annotations

import importlib
from typing import Any

from sigcam.core.errors import HubError


def client() -> Any:
    """Returns the module huggingface_hub.

    Raises:
        HubError: it isn't installed.

    Example:
        client().snapshot_download("owner/name")
    """
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as exc:
        raise HubError(
            'the Hugging Face Hub needs the package huggingface_hub: pip install "sigcam[hub]"'
        ) from exc
