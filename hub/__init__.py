"""Publishes exported models on the Hugging Face Hub and gets them from there.

Needs huggingface_hub (extra `hub`), which is imported when the Hub is first spoken to; tokens and
the cache are its own business. Imports neither torch nor onnx.
"""

from __future__ import annotations
