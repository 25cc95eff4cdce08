"""TensorRT engines, run by TensorRT itself; they are built in `sigcam.convert.tensorrt`.

    package.py   chooses between the packages `tensorrt` and `tensorrt_rtx`, which have nearly
                 the same API, and holds what differs
    log.py       the one logger that TensorRT has
    engine.py    opens an engine, after checking that it fits
    runtime_cache.py  keeps the kernels that TensorRT-RTX compiles
    executor.py  runs an engine for one caller, as it comes or as a captured CUDA graph
    pool.py      gives each of several callers executors of its own
    backend.py   the backend

Nothing here imports either package before it is used.
"""
