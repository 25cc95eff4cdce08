"""Model repositories for other servers: Triton, KServe, OpenVINO Model Server, Ray Serve.

`sigcam.repositories.write` has the function that makes them.
"""
