"""TensorRT: building engines from artifacts, and running them.

`seam.py` chooses between the packages `tensorrt` and `tensorrt_rtx`, which have nearly the
same API, and holds what differs. `build.py` makes an engine and its sidecar, `sidecar.py`
keeps and checks what the engine itself doesn't say, `engine.py` opens a pair of them, and
`lane.py` and `pool.py` run it for several callers at once. Nothing here imports either
package before it is used.
"""
