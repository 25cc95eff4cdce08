"""Every public function with arguments of other types: an error of ours, and nothing is done."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sigcam
from sigcam.core.errors import ImageError, SigcamError, UnknownClassError, UsageError
from tests.support.tiny import tiny_spec

BAD = (
    None, True, 2.5, float("nan"), 10**500, "", "~", b"bytes", [], [[]], {}, {1}, object(), int,
    np.zeros((2, 2)), np.array(3), np.array("a"), 1j, ("a", 2), [None], "a\0b", slice(1),
)  # fmt: skip

# What the parameters without a default get, while another one is tried.
NEEDED = {
    "export_artifact": {"classifier": None, "path": "made.onnx"},
    "train_branch": {"classifier": None, "dataset": None},
    "evaluate_artifacts": {"paths": [], "dataset": None, "folder": "made"},
    "quantize_artifact": {"path": "missing.onnx", "data": "missing", "out": "made.onnx"},
    "build_engine": {"model": "missing.onnx"},
    "build_classifier": {"arch": "no/such/network"},
    "open_dataset": {"path": "missing"},
    "read_spec": {"path": "missing.onnx"},
    "load": {"path": "missing.onnx"},
    "stack_heatmaps": {"explanations": []},
    "shared_cam_range": {"explanations": []},
}
OPTIONS = ("ExportOptions", "OverlayOptions", "QuantizeOptions", "TrainSettings")


def parameters(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


def refused(call, name, value, *, may_pass):
    try:
        call(**{name: value})
    except SigcamError as exc:
        assert str(exc), name
    else:
        assert may_pass, f"{name}={value!r} went through"


@pytest.mark.parametrize("function", NEEDED)
def test_functions(function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = getattr(sigcam, function)
    for name in parameters(found):
        for value in BAD:
            refused(
                lambda **given: found(**{**NEEDED[function], **given}), name, value, may_pass=False
            )
    assert list(tmp_path.iterdir()) == []


def test_no_public_function_is_left_out():
    functions = {name for name in sigcam.__all__ if inspect.isfunction(getattr(sigcam, name))}
    assert functions == set(NEEDED)
    assert {name for name in sigcam.__all__ if name.endswith(("Options", "Settings"))} == set(
        OPTIONS
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_options(options):
    """Defaults are among the values, so not all of them are refused; none is another error."""
    kind = getattr(sigcam, options)
    for name in parameters(kind):
        for value in BAD:
            refused(kind, name, value, may_pass=True)


@pytest.fixture(scope="module")
def session(make_artifact):
    with sigcam.load(make_artifact(), "ort") as opened:
        yield opened


def image():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


@pytest.mark.parametrize("method", ["explain", "stream", "passes"])
def test_the_methods_of_a_session(session, method):
    def call(**given):
        found = getattr(session, method)(**given)
        return found if method != "stream" else list(found)

    base = {"explain": {"images": image()}, "stream": {"images": [image()]}, "passes": {}}[method]
    for name in parameters(getattr(session, method)):
        for value in BAD:
            if name == "progress" and value is int:
                continue  # callable, as it has to be
            refused(lambda **given: call(**{**base, **given}), name, value, may_pass=True)


def test_the_methods_of_an_explanation(session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = session.explain(image())[0]
    calls = {
        one.boxes: "threshold", one.to_dict: "threshold", one.save: "path", one.overlay: "options",
        one.for_classes: "classes", one.write_heatmap: "out",
    }  # fmt: skip
    for call, name in calls.items():
        for value in BAD:
            with pytest.raises(UsageError):
                call(**{name: value})
    for value in BAD[1:]:
        with pytest.raises(UsageError):
            one.overlay(image=value)
        with pytest.raises(UsageError):
            one.save("made.png", value)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_item_takes_its_own_slot(session):
    items = [image(), None, 3, image(), np.zeros((4, 4)), "missing.jpg", [1], image()]
    found = list(session.stream(items, on_error="return"))
    kinds = [isinstance(slot, ImageError) for slot in found]
    assert kinds == [False, True, True, False, True, True, True, False]
    assert found[0][0].cam.tolist() == found[3][0].cam.tolist() == found[7][0].cam.tolist()
    taken = session.stream(items)
    assert next(taken)
    with pytest.raises(UsageError, match="an image is a path"):
        next(taken)


@pytest.mark.parametrize(
    "images", [None, 3, "a.jpg", b"a", {"a.jpg"}, {"a": 1}, np.zeros((2, 4, 4, 3), np.uint8)]
)
def test_what_is_no_stream(session, images):
    with pytest.raises(UsageError, match="stream takes several images"):
        session.stream(images)


def test_nothing_to_explain(session):
    assert session.explain([]) == []
    assert list(session.stream(iter(()))) == []


def test_ranks_are_classes(session):
    best = session.explain(image(), top_k=3)
    order = [one.class_id for one in best]
    found = session.explain(image(), classes=[-1, order[2], "-2", np.int64(-3)])
    assert [one.class_id for one in found] == [order[0], order[2], order[1], order[2]]
    np.testing.assert_array_equal(found[0].cam, best[0].cam)
    np.testing.assert_array_equal(found[2].cam, best[1].cam)
    assert [one.class_id for one in session.explain(image(), classes=-1)] == order[:1]
    last = session.spec.num_classes
    with pytest.raises(UnknownClassError, match=rf"-1 \(the most probable class\) to -{last}"):
        session.explain(image(), classes=-last - 1)


def test_ranks_of_further_classes(make_artifact):
    path = make_artifact(head_input="features")
    with sigcam.load(path, "ort") as opened:
        one = opened.explain(image())[0]
        by_rank = one.for_classes([-1, -2, 0])
        wanted = np.argsort([-other.probability for other in one.for_classes(range(4))])
        assert [other.class_id for other in by_rank] == [wanted[0], wanted[1], 0]


def test_classes_in_many_forms(session):
    pandas = pytest.importorskip("pandas")
    name = tiny_spec().class_names[2]
    for classes in (
        [1, name], (1, "2"), np.array([1, 2]), np.array(["1", "2"]), range(1, 3),
        pandas.Series([1, 2]), pandas.Series(["1", name], dtype=object), [np.int8(1), np.str_("2")],
    ):  # fmt: skip
        assert [one.class_id for one in session.explain(image(), classes=classes)] == [1, 2]
    assert session.explain(image(), classes=np.array(2))[0].class_id == 2
    for classes in (
        {1, 2}, {1: 2}, b"\1\2", bytearray(b"\1"), [], [[1, 2]], np.array([[1, 2]]), 1.0, [True],
        [None], iter([1]),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            session.explain(image(), classes=classes)


def test_the_home_folder_in_paths(make_artifact, cli, tmp_path, monkeypatch):
    """In Python and on the command line, where a shell expands it in few places."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model.onnx").write_bytes(make_artifact().read_bytes())
    Image.fromarray(image()).save(tmp_path / "a.png")
    assert sigcam.read_spec("~/model.onnx").num_classes == 4
    with sigcam.load("~/model.onnx", "ort") as opened:
        one = opened.explain("~/a.png")[0]
        one.save("~/made/a.json")
        assert next(opened.stream(["~/a.png"]))[0].class_id == one.class_id
    assert (tmp_path / "made" / "a.json").is_file()
    assert cli("info", "~/model.onnx").exit_code == 0
    found = cli("explain", "~/model.onnx", "~/a.png", "--out=~/maps")
    assert found.exit_code == 0, found.stderr
    assert (tmp_path / "maps" / "a.png").is_file()
    assert not Path("~").exists()
