"""Damaged files, killed commands, full disks and many threads; `make fuzz` runs all of it."""
