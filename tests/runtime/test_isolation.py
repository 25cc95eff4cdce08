"""The runtime works, and stays light, where PyTorch and the onnx package are missing."""

import subprocess
import sys
import textwrap


def run(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_loads_and_explains_without_torch_and_onnx(make_artifact):
    out = run(
        """
        import sys
        for name in ("torch", "torchvision", "onnx", "onnxscript", "PIL"):
            sys.modules[name] = None
        import numpy as np
        from sigcam.runtime.session import load
        with load(sys.argv[1]) as session:
            [one] = session.explain(np.full((40, 60, 3), (9, 99, 9), np.uint8), classes="Green")
        assert not {"sigcam.train", "sigcam.export"} & set(sys.modules)
        print(one.label, one.heatmap.shape)
        """,
        make_artifact(),
    )
    assert out == "green (40, 60)\n"


def test_importing_the_package_imports_neither_numpy_nor_opencv():
    out = run(
        """
        import sys
        import sigcam.runtime
        print(sorted({"numpy", "cv2", "simplejpeg", "onnxruntime"} & set(sys.modules)))
        """
    )
    assert out == "[]\n"
