"""Frames and pages by number, from the command line and in Python: names, files and warnings."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

import sigcam
from sigcam.cli import main
from sigcam.core.errors import ImageError, ImageWarning
from tests.support.sessions import make_artifact, spec_of  # noqa: F401 (fixtures)

Image = pytest.importorskip("PIL.Image")

LEVELS = (20, 120, 220)


@pytest.fixture
def clip(tmp_path):
    frames = [Image.fromarray(np.full((40, 60, 3), level, np.uint8)) for level in LEVELS]
    path = tmp_path / "clip.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
    return path


def test_results_name_the_frame(make_artifact, clip):  # noqa: F811
    with sigcam.load(make_artifact(), threads=1) as session:
        sources = [f"{clip}#1", sigcam.Frame(clip, 1), sigcam.Frame(clip.read_bytes(), 1)]
        found = session.explain(sources)
        assert [one[0].source for one in found] == [f"{clip}#1", f"{clip}#1", None]
        for [one] in found:
            assert abs(int(one.image[0, 0, 0]) - 120) < 10
        with pytest.raises(ImageError, match="3 frames, counted from 0; there is no #3"):
            session.explain(f"{clip}#3")
        with pytest.warns(ImageWarning, match="clip.gif has 3 frames"):
            [first] = session.explain(clip)
        assert first.source == str(clip)
        assert abs(int(first.image[0, 0, 0]) - 20) < 10


@pytest.mark.filterwarnings("default::sigcam.core.errors.ImageWarning")
def test_frames_on_the_command_line(make_artifact, clip, tmp_path):  # noqa: F811
    out = tmp_path / "maps"
    names = [f"{clip}#0", f"{clip}#2", str(clip)]
    common = ["--backend", "ort", "--json", "--out", str(out)]
    found = CliRunner().invoke(main, ["explain", str(make_artifact()), *names, *common])
    assert found.exit_code == 0, found.stderr
    got = [json.loads(line) for line in found.stdout.splitlines()]
    assert [one["image"] for one in got] == names
    assert [one["explanations"][0]["source"] for one in got] == names
    assert sorted(path.name for path in out.iterdir()) == ["clip#0.png", "clip#2.png", "clip.png"]
    [line] = [one for one in found.stderr.splitlines() if "frames" in one]
    assert line.startswith(f"warning: {clip} has 3 frames, of which the first is read")


@pytest.mark.parametrize("frame", [("clip.gif", -1), ("clip.gif", 1.0), ("clip.gif", True), (3, 0)])
def test_bad_frames_are_refused(frame):
    with pytest.raises(sigcam.SigcamError, match=r"Frame is of|whole number"):
        sigcam.Frame(*frame)
