"""Artifacts in fewer bits than float32."""
