"""Maps of further classes from the head graph."""

import copy
import gc
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sigcam.core.artifact import read_spec
from sigcam.core.errors import ArtifactError, UnknownClassError, UsageError
from sigcam.core.spec import ClassSelection, Preprocessing, Source
from sigcam.runtime.session import load
from tests.support.tiny import GRID, features_of, seal_to

RNG = np.random.default_rng(5)
EXACT = Preprocessing(56, 56, "stretch")
IMAGES = [RNG.integers(0, 256, (56, 56, 3), dtype=np.uint8) for _ in range(4)]

CPU_BACKENDS = {"ort": "onnxruntime", "openvino": "openvino"}


def skip_without(backend):
    pytest.importorskip(CPU_BACKENDS[backend])


def same(got, wanted):
    assert [one.class_id for one in got] == [one.class_id for one in wanted]
    for a, b in zip(got, wanted, strict=True):
        assert (a.label, a.method) == (b.label, b.method)
        assert a.probability == pytest.approx(b.probability, rel=1e-6)
        assert a.evidence == pytest.approx(b.evidence, rel=1e-5)
        np.testing.assert_allclose(a.cam, b.cam, atol=1e-5)
        np.testing.assert_allclose(a.heatmap, b.heatmap, atol=1e-4)
        assert a.image is b.image


@pytest.mark.parametrize("head_input", ["features", "head_input"])
@pytest.mark.parametrize("profile", ["fused", "split"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_as_if_asked_for_at_once(make_artifact, head_input, profile, head, backend):
    skip_without(backend)
    path = make_artifact(profile=profile, head=head, head_input=head_input)
    order = ["blue", 0, "Warm", 0]
    with load(path, backend, threads=1, batch_size=3) as session:
        for [first], image in zip(session.explain(IMAGES), IMAGES, strict=True):
            later = first.for_classes(order)
            same(later, session.explain(image, classes=order))
            assert [one.passes for one in later] == [1] * 4
            same(later[1].for_classes("green"), session.explain(image, classes="green"))


def test_for_an_artifact_that_chooses_its_classes(make_artifact):
    chosen = make_artifact(
        classes=ClassSelection("top1"), preprocessing=EXACT, head_input="features"
    )
    with load(chosen) as session:
        [first] = session.explain(IMAGES[0])
        later = first.for_classes([0, 1, 2])
    features = features_of(IMAGES[0].transpose(2, 0, 1) / 255)
    np.testing.assert_allclose([one.cam for one in later], features, atol=1e-5)
    assert sum(one.probability for one in later) < 1


def test_unknown_classes(make_artifact):
    with load(make_artifact(head_input="features")) as session:
        [first] = session.explain(IMAGES[0])
        with pytest.raises(UnknownClassError, match="near names: 'green'"):
            first.for_classes("gren")
        with pytest.raises(UnknownClassError, match="0 to 3"):
            first.for_classes([0, -5])


def test_the_methods_of_several_passes(make_artifact):
    with load(make_artifact(head="mlp", head_input="features"), threads=1) as session:
        for method, passes in (("ablationcam", 5), ("eigencam", 1)):
            [first] = session.explain(IMAGES[0], classes=1, method=method)
            later = first.for_classes([2, 3])
            same(later, session.explain(IMAGES[0], classes=[2, 3], method=method))
            assert later[0].passes == passes  # one of the head's is for the evidence
        [first] = session.explain(IMAGES[0], method="scorecam")
        with pytest.raises(UsageError, match="scorecam runs the whole network"):
            first.for_classes(1)


def test_without_a_head_graph(make_artifact):
    path = make_artifact(head_input="features")
    path.with_name("model.head.onnx").unlink()
    with load(path) as session:
        [first] = session.explain(IMAGES[0])
        assert first._image.further is None  # and so nothing of the network's is kept
        with pytest.raises(UsageError, match=r"doesn't have; export.*--head"):
            first.for_classes(1)
    with (
        load(make_artifact(profile="split")) as session,
        pytest.raises(UsageError, match="head graph"),
    ):
        session.explain(IMAGES[0])[0].for_classes(1)


def test_a_head_graph_elsewhere(make_artifact, tmp_path):
    path = make_artifact(head_input="features")
    elsewhere = tmp_path / "second.onnx"
    shutil.move(path.with_name("model.head.onnx"), elsewhere)
    with load(path, head=elsewhere) as session:
        assert len(session.explain(IMAGES[0])[0].for_classes([0, 1])) == 2
    with pytest.raises(ArtifactError, match="no model file"):
        load(path, head=tmp_path / "absent.onnx")
    with pytest.raises(UsageError, match="exported without a head graph"):
        load(make_artifact(), head=elsewhere)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"nwc": False}, "nwc False, not True"),
        ({"branch": "softmax"}, "branch 'softmax', not 'sigmoid'"),
        ({"method": "gradcam"}, "method 'gradcam', not 'cam'"),
        ({"target_layers": ("conv",)}, r"target_layers \('conv',\), not \('pool',\)"),
        ({"source": Source("tiny", "1" * 64)}, "weights '1111"),
        ({"source": Source("tiny", "0" * 64, "2" * 64)}, "sigmoid branch '2222"),
    ],
)
def test_the_head_graph_of_another_artifact(make_artifact, changes, says):
    path = make_artifact(head_input="features")
    other = make_artifact(head_input="features", **changes)
    head = path.with_name("model.head.onnx")
    shutil.copy(other.with_name("model.head.onnx"), head)
    with pytest.raises(ArtifactError, match=f"of another artifact.*{says}.*move it away"):
        load(path)
    with pytest.raises(ArtifactError, match="of another artifact"):
        load(path, head=head)


def test_an_artifact_is_no_head_graph_and_the_other_way_round(make_artifact):
    path = make_artifact(head_input="features")
    head = path.with_name("model.head.onnx")
    assert read_spec(head).kind == "head"
    with pytest.raises(ArtifactError, match="is a head graph; give the artifact"):
        load(head)
    with pytest.raises(ArtifactError, match="is not a head graph"):
        load(path, head=path)


def test_an_artifact_that_does_not_emit_what_its_head_graph_takes(make_artifact):
    donor = make_artifact(head_input="head_input")
    path = make_artifact(spec_text=read_spec(donor).to_json())
    load(path).close()  # without the head graph it is a whole artifact
    shutil.copy(donor.with_name("model.head.onnx"), path.with_name("model.head.onnx"))
    with pytest.raises(ArtifactError, match=r"doesn't fit its spec.*'head_input'"):
        load(path)


def test_a_head_graph_with_other_inputs(make_artifact):
    import onnx

    path = make_artifact(head_input="features")
    head = path.with_name("model.head.onnx")
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"sigcam": read_spec(head).to_json()})
    seal_to(model, head)
    seal_to(onnx.load(path), path, head)
    with load(path) as session, pytest.raises(ArtifactError, match="head graph should take"):
        session.explain(IMAGES[0])[0].for_classes(1)


def test_closed(make_artifact):
    with load(make_artifact(head_input="features")) as session:
        [first] = session.explain(IMAGES[0])
        [eigen] = session.explain(IMAGES[0], method="eigencam")
    for one in (first, eigen):
        assert one.valid
        with pytest.raises(UsageError, match="closed"):
            one.for_classes(1)


def test_closed_before_it_was_opened(make_artifact):
    session = load(make_artifact(head_input="features"))
    [first] = session.explain(IMAGES[0])
    session.close()
    assert session._model.head_graph._backend is None
    with pytest.raises(UsageError, match="closed"):
        first.for_classes(1)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_threads(make_artifact, backend):
    skip_without(backend)
    with load(make_artifact(head="mlp", head_input="features"), backend, threads=1) as session:
        firsts = [session.explain(one)[0] for one in IMAGES]
        wanted = [session.explain(one, classes=[0, 3]) for one in IMAGES]
        assert session._model.head_graph._backend is None

        def work(index):
            which = index % len(IMAGES)
            same(firsts[which].for_classes([0, 3]), wanted[which])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(64)))


def test_only_the_images_own_row_is_kept(make_artifact):
    with load(make_artifact(head_input="features"), batch_size=4) as session:
        results = session.explain(IMAGES)
        one = results[0][0]._image.further
        assert one._values.shape == (3, GRID, GRID)
        assert one._values.base is None
        assert one._probabilities.base is None
        kept = weakref.ref(one)
        del one, results
        gc.collect()
        assert kept() is None


def test_a_copy_goes_without_the_backend(make_artifact):
    with load(make_artifact(head_input="features")) as session:
        [first] = session.explain(IMAGES[0])
        copied = copy.deepcopy(first)
        np.testing.assert_array_equal(copied.heatmap, first.heatmap)
        with pytest.raises(UsageError, match=r"is a copy or was pickled.*load the model after"):
            copied.for_classes(1)
        assert first.for_classes(1)


def test_a_head_graph_without_a_sigmoid_branch(make_artifact):
    import onnx

    path = make_artifact(head_input="features", branch="softmax")
    head = path.with_name("model.head.onnx")
    for file in (head, path):
        model = onnx.load(file)
        kept = [one for one in model.graph.output if one.name != "evidence_logits"]
        del model.graph.output[:]
        model.graph.output.extend(kept)
        seal_to(model, file, None if file == head else head)
    with load(path) as session:
        for method in (None, "ablationcam", "eigencam"):
            [first] = session.explain(IMAGES[0], method=method, classes=0)
            [later] = first.for_classes(1)
            [wanted] = session.explain(IMAGES[0], method=method, classes=1)
            assert first.evidence is later.evidence is None
            np.testing.assert_allclose(later.cam, wanted.cam, atol=1e-5)
            assert later.passes == {None: 1, "ablationcam": 4, "eigencam": 0}[method]
