"""Clamp-and-combine: CAM weights and features to CAMs. Imports nothing of ours."""
