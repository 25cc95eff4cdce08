"""Runs an exported artifact: images in, predictions and evidence maps out.

Light by rule: NumPy, OpenCV and one backend. Never imports torch, onnx or anything of the
PyTorch side, so that it can be installed on an edge device. `import sigcam` has the public names.
"""
