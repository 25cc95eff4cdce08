"""The GPU path checked and timed on a machine that has one; README.md says how."""

from benchmarks.gpu.source_tree import provide

provide()
