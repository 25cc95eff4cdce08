"""Building TensorRT engines of exported models; `sigcam.runtime.backends.tensorrt` runs them.

options.py       what can be chosen
build.py         from an artifact to an engine and its sidecar
float16.py       the graph in float16, where that is wanted
timing_cache.py  TensorRT's timings, kept for the next build
monitor.py       the bar of a build, and the way to break it off
"""
