"""OpenVINO on the CPU, with a cache of compiled models."""
