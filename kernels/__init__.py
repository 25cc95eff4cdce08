"""Clamp-and-combine: CAM weights and features to grids. Imports nothing of ours."""
