"""How many files of ours one image passes through in `Session.explain`."""

import sys
from pathlib import Path

import numpy as np

import sigcam.runtime
from sigcam.runtime.session import load

OURS = Path(sigcam.runtime.__file__).parents[1]
MOST = 17  # three of them for the file: what it is, its format, and what headers say


def files_called(function):
    """The files of the package whose functions run while `function` does."""
    found = set()

    def trace(frame, event, argument):
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(OURS):
            found.add(file.relative_to(OURS).as_posix())

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return found


def test_an_image_passes_few_files(make_artifact, tmp_path):
    """A newcomer who follows one image has to read these, and no others."""
    import cv2

    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.zeros((60, 80, 3), np.uint8))
    with load(make_artifact(), "ort") as session:
        session.explain(path)
        found = files_called(lambda: session.explain(path))
    assert "runtime/session.py" in found
    assert len(found) <= MOST, sorted(found)
