"""Runs an exported artifact: pictures in, predictions and evidence maps out.

Light by rule: NumPy, OpenCV and one engine. Never imports torch, onnx,
`sigcam.train` or `sigcam.export`, so that it can be installed on an edge device.
"""
