"""The GPU path checked and timed on a machine that has one."""
