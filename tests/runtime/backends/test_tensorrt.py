"""Running an engine: what TensorRT and CUDA are asked for, and what comes back."""

import gc
import logging
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from sigcam.core.errors import (
    ArtifactError,
    BackendError,
    BackendUnavailableError,
    UsageError,
)
from sigcam.images.preprocess import place
from sigcam.images.upsample import to_heatmap
from sigcam.kernels import graph
from sigcam.kernels.errors import KernelError
from sigcam.kernels.reference import clamp_combine
from sigcam.runtime.backends.base import BackendOptions, HeatmapOptions, HeatmapRequest
from sigcam.runtime.backends.onnxruntime.cpu import OrtBackend
from sigcam.runtime.backends.tensorrt import pool
from sigcam.runtime.backends.tensorrt.pool import MAX_GRAPHS, MAX_WORKERS
from sigcam.runtime.session import load
from tests.support import fake_tensorrt
from tests.support.device_doubles import Buffer
from tests.support.fake_tensorrt import GPU, write_engine
from tests.support.tiny import tiny_spec

SPEC = tiny_spec(profile="split")
SIZES = [(90, 70), (64, 120), (90, 70), (33, 35)]


def request_for(batch, sizes=SIZES):
    return HeatmapRequest(
        tuple(place(SPEC.preprocessing, *size) for size in sizes[:batch]), SPEC.nwc
    )


@pytest.fixture
def reference(machine):
    """The same model in ONNX Runtime: all outputs, and the heatmaps made on the CPU."""
    write_engine(machine.folder)
    cpu = OrtBackend.open(machine.folder / "model.onnx", BackendOptions(threads=1))

    def run(feeds, request=None):
        outputs = cpu.infer(feeds)
        if request is None:
            return outputs, None
        cams = clamp_combine(outputs["features"], outputs["cam_weights"], clamp=SPEC.nwc)
        made = [
            [to_heatmap(cam, placement) for cam in row]
            for row, placement in zip(cams, request.placements, strict=True)
        ]
        return outputs, (cams, made)

    return run


def check(got, want, request, wanted):
    outputs, heatmaps = got
    expected, (cams, made) = want
    assert list(outputs) == wanted
    for name in wanted:
        np.testing.assert_allclose(outputs[name], expected[name], rtol=1e-6)
        assert outputs[name].dtype == expected[name].dtype
    np.testing.assert_allclose(heatmaps.cams, cams, atol=1e-6)
    for image, row in enumerate(made):
        for k, (one, valid) in enumerate(row):
            np.testing.assert_allclose(heatmaps.heatmaps[image][k], one, atol=3e-5)
            assert heatmaps.valid[image, k] == valid


def test_outputs_are_the_models(machine, feeds, reference):
    backend = machine.open()
    assert [str(info) for info in backend.inputs] == ["uint8 [?, 56, 56, 3]", "int64 [?, ?]"]
    given = feeds(3)
    outputs = backend.infer(given)
    want, _ = reference(given)
    assert outputs.keys() == want.keys()
    for name, array in outputs.items():
        np.testing.assert_array_equal(array, want[name])
    kept = outputs["logits"].copy()
    backend.infer(feeds(3, seed=1))
    np.testing.assert_array_equal(outputs["logits"], kept)  # no later call writes to it


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_repeated_calls_become_a_graph(machine, feeds, reference, package):
    machine.install(package)
    backend = machine.open(write_engine(machine.folder, package))
    wanted = ["logits", "class_ids_out", "evidence_logits"]
    request = request_for(4)
    for turn in range(5):
        given = feeds(4, 3, seed=turn)
        got = backend.infer_heatmaps(given, wanted, request)
        check(got, reference(given, request), request, wanted)
        # As it comes, then in an executor of its own, which is captured; then launched.
        assert machine.module.executed == (1, 3, 3, 3, 3)[turn]
        assert machine.cuda.captured == (0, 1, 1, 1, 1)[turn]
        assert machine.cuda.launched == max(0, turn - 1)
    assert machine.module.settled == [False, package == "tensorrt_rtx"]
    assert backend.description.endswith("float32, on Fake GPU, with CUDA graphs")


def test_other_shapes_and_places_are_other_graphs(machine, feeds, reference):
    """Growing memory of the plain executor moves nothing that a graph refers to."""
    backend = machine.open()
    calls = [(1, 1), (4, 3), (2, 2), (4, 3), (1, 1), (2, 2), (4, 1)]
    for turn in range(3):
        for batch, classes in calls:
            given = feeds(batch, classes, seed=10 * turn + batch)
            sizes = SIZES if turn % 2 else SIZES[::-1]
            request = request_for(batch, sizes)
            got = backend.infer_heatmaps(given, ["logits"], request)
            check(got, reference(given, request), request, ["logits"])
    assert machine.cuda.captured == MAX_GRAPHS
    assert len(machine.cuda.streams) == 1


def test_kinds_that_take_turns_do_not_push_each_other_out(machine, feeds):
    backend = machine.open()
    kinds = [(1 + n % 4, 1 + n // 4) for n in range(MAX_GRAPHS + 1)]
    for _ in range(4):
        for kind in kinds:
            backend.infer(feeds(*kind))
    # Of each kind with a graph: as it comes, captured, and launched twice.
    assert machine.cuda.captured == MAX_GRAPHS
    assert machine.cuda.launched == 2 * MAX_GRAPHS
    assert len(machine.module.settled) == 1 + MAX_GRAPHS
    # Calls of the one without, until the graphs are old enough for one to be given up.
    for _ in range(2 * pool._REMEMBERED):
        backend.infer(feeds(*kinds[-1]))
    assert machine.cuda.captured == MAX_GRAPHS + 1
    assert len(machine.module.contexts) == 1 + MAX_GRAPHS
    captured = []
    for _ in range(3):  # the other graphs are old as well, and may go; then all are in use
        for kind in kinds:
            backend.infer(feeds(*kind))
        captured.append(machine.cuda.captured)
    assert captured == [2 * MAX_GRAPHS] * 3


def test_a_network_that_cannot_be_captured_runs_and_says_so(machine, feeds, reference, caplog):
    for package, reason in (("tensorrt", "not permitted"), ("tensorrt_rtx", "can't be captured")):
        machine.install(package)
        machine.module.can_capture = False
        backend = machine.open(write_engine(machine.folder, package))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for turn in range(4):
                given, request = feeds(2, seed=turn), request_for(2)
                got = backend.infer_heatmaps(given, ["logits"], request)
                check(got, reference(given, request), request, ["logits"])
        assert len(caplog.records) == 1
        assert reason in caplog.text
        assert "without CUDA graphs" in backend.description
        assert reason in backend.description


@pytest.mark.parametrize("point", ["begin", "end"])
def test_a_capture_that_cuda_breaks_off_is_done_without(machine, feeds, reference, caplog, point):
    """The call that was to be captured has succeeded, and so do those after it."""
    backend = machine.open()
    machine.cuda.capture_fails = point
    with caplog.at_level(logging.WARNING):
        for turn in range(4):
            given, request = feeds(2, seed=turn), request_for(2)
            got = backend.infer_heatmaps(given, ["logits"], request)
            check(got, reference(given, request), request, ["logits"])
    reason = f"CUDA can't capture it: the {point} of the capture failed"
    assert [reason in record.getMessage() for record in caplog.records] == [True]
    assert reason in backend.description
    assert machine.cuda.launched == machine.cuda.captured == 0
    assert len(machine.module.contexts) == 1  # that of the executor without a graph


def test_photos_of_all_sizes_replay_one_graph(machine, feeds, reference):
    """Where the images lie isn't part of the graph: maps are made beside it."""
    backend = machine.open()
    random = np.random.default_rng(0)
    for turn in range(8):
        sizes = [tuple(random.integers(30, 150, 2).tolist()) for _ in range(3)]
        given, request = feeds(3, 2, seed=turn), request_for(3, sizes)
        got = backend.infer_heatmaps(given, ["logits"], request)
        check(got, reference(given, request), request, ["logits"])
    assert machine.cuda.captured == 1
    assert machine.cuda.launched == 6


def test_the_maps_kernels_are_never_captured(machine, feeds, monkeypatch):
    backend = machine.open()
    original, where = backend._kernel.launch, []

    def launch(plan, *, stream, **addresses):
        where.append(machine.cuda.streams[stream].capturing)
        original(plan, stream=stream, **addresses)

    monkeypatch.setattr(backend._kernel, "launch", launch)
    for _ in range(4):
        backend.infer_heatmaps(feeds(), ["logits"], request_for(2))
    assert len(where) == 4  # one sequence for each call, for images of two sizes
    assert set(where) == {None}


def test_contexts_of_a_worker_share_their_memory(machine, feeds):
    backend = machine.open()
    for shape in ((1, 1), (2, 2), (1, 1), (2, 2), (1, 1), (3, 1)):
        backend.infer(feeds(*shape))
    assert len(machine.module.contexts) == 1 + MAX_GRAPHS
    assert len({context.memory for context in machine.module.contexts}) == 1


@pytest.mark.parametrize("options", [HeatmapOptions(), HeatmapOptions("uint8")])
def test_memory_that_cpu_and_gpu_share_is_not_copied(
    machine, feeds, reference, monkeypatch, options
):
    """As on Jetson: what the host wrote is read where it is, and maps are written there."""
    sizes = []
    original = machine.cuda._copy
    monkeypatch.setattr(
        machine.cuda, "_copy", lambda *given: sizes.append(given[2]) or original(*given)
    )
    monkeypatch.setattr(fake_tensorrt, "GPU", replace(GPU, integrated=True))
    backend = machine.open()
    for turn in range(4):
        given = feeds(3, 2, seed=turn)
        request = replace(request_for(3), options=options)
        got = backend.infer_heatmaps(given, ["logits"], request)
        if options.made == "float32":
            check(got, reference(given, request), request, ["logits"])
        else:
            want = reference(given, request)[1][1]
            for image, row in enumerate(want):
                for k, (one, _) in enumerate(row):
                    np.testing.assert_allclose(
                        got[1].heatmaps[image][k] / 255, one, atol=0.51 / 255
                    )
    assert machine.cuda.captured == 1
    assert machine.cuda.launched == 2
    cam = 4 * 7 * 7 * 2
    assert set(sizes) <= {cam, 2 * cam, 3 * cam}  # CAMs alone, which lie in the workspace


def test_workers_do_not(machine, feeds):
    backend = machine.open()
    with backend._pool.worker() as one, backend._pool.worker() as other:
        assert one._memory.address != other._memory.address
        assert one._memory.size >= 1000


def test_memory_that_is_used_up_by_a_context_leaves_the_session_usable(machine, feeds, monkeypatch):
    backend = machine.open()
    before = Buffer.alive

    class Full(Buffer):
        def __init__(self, size):
            raise KernelError("cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY (out of memory)")

    monkeypatch.setattr(machine.cuda, "DeviceBuffer", Full)
    for _ in range(2 * MAX_WORKERS):  # no worker is lost
        with pytest.raises(BackendError, match=r"OUT_OF_MEMORY.*smaller batch_size"):
            backend.infer(feeds())
    assert Buffer.alive == before
    assert not machine.cuda.streams
    monkeypatch.setattr(machine.cuda, "DeviceBuffer", Buffer)
    assert backend.infer(feeds())["logits"].shape == (2, 4)


def test_nothing_is_collected_while_a_graph_is_captured(monkeypatch):
    """A finalizer that frees device memory would break the capture off."""
    begun = []

    def call(name, *arguments):
        begun.append((name, gc.isenabled()))
        return 0

    monkeypatch.setattr(graph, "call", call)
    enums = SimpleNamespace(
        CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    )
    monkeypatch.setattr(graph, "bindings", lambda: enums)
    monkeypatch.setattr(graph, "Owned", lambda *arguments: None)
    with graph.Graph.capture(1):
        with graph.Graph.capture(2):  # as by another thread
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    assert [on for name, on in begun if "Capture" in name] == [False] * 4
    with pytest.raises(KeyError), graph.Graph.capture(1):
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with graph.Graph.capture(1):
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_one_failing_close_keeps_nothing_alive(machine, feeds, monkeypatch):
    backend = machine.open()
    for _ in range(2):
        backend.infer(feeds())
    assert len(machine.module.contexts) == 2
    closed = []

    def breaks(kind):
        original = kind.close

        def broken(self):
            closed.append(kind)
            original(self)
            raise KernelError("it can't be destroyed")

        monkeypatch.setattr(kind, "close", broken)

    breaks(machine.cuda.Graph)
    breaks(Buffer)
    backend.close()  # the machine's end looks for what stays
    assert not machine.module.contexts
    assert closed.count(machine.cuda.Graph) == 1
    assert closed.count(Buffer) > 4


def test_sizes_that_depend_on_the_image_are_refused(machine, feeds):
    backend = machine.open()
    machine.module.depends_on_data = {"logits"}
    with pytest.raises(BackendError, match=r"can't tell the size of logits .*\[-1, 4\]"):
        backend.infer(feeds())


def test_float16_tensors_reach_the_kernel_and_come_back_as_float32(machine, feeds, reference):
    machine.module.half = {"features", "cam_weights"}
    backend = machine.open()
    assert {str(i.dtype) for i in backend.outputs} == {"float32", "int64"}
    given, request = feeds(), request_for(2)
    outputs, heatmaps = backend.infer_heatmaps(given, ["features"], request)
    want, (cams, _) = reference(given, request)
    assert outputs["features"].dtype == np.float32
    np.testing.assert_allclose(outputs["features"], want["features"], rtol=1e-3)
    np.testing.assert_allclose(heatmaps.cams, cams, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_heatmaps_of_the_graphs_own_cams(machine, feeds, package):
    machine.install(package)
    backend = machine.open(write_engine(machine.folder, package, profile="fused"))
    assert backend.makes_heatmaps
    cpu = OrtBackend.open(machine.folder / "model.onnx", BackendOptions(threads=1))
    for turn in range(4):  # plainly, captured, and as a graph
        given = feeds(4, 3, seed=turn)
        request = replace(request_for(4, SIZES[turn % 2 :] + SIZES[: turn % 2]), made_of=("cams",))
        outputs, found = backend.infer_heatmaps(given, ["logits"], request)
        want = cpu.infer(given)
        assert list(outputs) == ["logits"]
        np.testing.assert_array_equal(found.cams, want["cams"])
        for image, placement in enumerate(request.placements):
            for rank in range(3):
                exact, valid = to_heatmap(want["cams"][image, rank], placement)
                np.testing.assert_allclose(found.heatmaps[image][rank], exact, atol=3e-5)
                assert found.valid[image, rank] == valid
    assert machine.cuda.captured == 1
    assert machine.cuda.launched == 2
    with pytest.raises(UsageError, match=r"not .'cam_weights', 'features'."):
        backend.infer_heatmaps(given, ["logits"], request_for(4))


def test_cams_that_the_kernels_cannot_take(machine, feeds):
    """Those of float16, which a plan of trtexec may give, and ones that are to stay CAMs."""
    engine = write_engine(machine.folder, profile="fused")
    lazy = machine.open(engine, heatmaps=HeatmapOptions("lazy"))
    machine.module.half = {"cams"}
    half = machine.open(engine)
    for backend in (lazy, half):
        assert not backend.makes_heatmaps
        with pytest.raises(BackendError, match="loaded without the kernels that make heatmaps"):
            backend.infer_heatmaps(feeds(2), ["logits"], replace(request_for(2), made_of=("cams",)))
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    with load(engine) as session, load(machine.folder / "model.onnx", "ort") as plain:
        assert session._model.backend.makes_heatmaps is False
        got, want = session.explain(image)[0], plain.explain(image)[0]
        assert got._made is None
        np.testing.assert_allclose(got.heatmap, want.heatmap, atol=2e-3)


def test_sizes_outside_the_engines(machine, feeds):
    backend = machine.open()
    with pytest.raises(UsageError, match="1 to 4 images in one run, got 5; pass batch_size=4"):
        backend.infer(feeds(5))
    with pytest.raises(UsageError, match="1 to 3 classes for each image, got 4"):
        backend.infer(feeds(1, 4))
    assert machine.module.executed == 0


def test_a_failure_is_told_and_leaves_the_others_alone(machine, feeds):
    backend = machine.open()
    backend.infer(feeds())
    machine.module.fails = True
    with pytest.raises(BackendError, match="failed while running the engine: not permitted"):
        backend.infer(feeds(3))
    machine.module.fails = False
    backend.infer(feeds())
    machine.module.no_memory = True
    with pytest.raises(BackendError, match="can't make an execution context"):
        backend.infer(feeds())  # comes again, and would be captured in a context of its own


def test_callers_in_threads_get_their_own(machine, feeds, reference):
    backend = machine.open()
    plans = [(1 + n % 4, 1 + n % 3, n) for n in range(24)]
    wants = {n: reference(feeds(b, k, n), request_for(b)) for b, k, n in plans}
    problems = []

    def caller(part):
        try:
            for batch, classes, n in part * 2:
                request = request_for(batch)
                got = backend.infer_heatmaps(feeds(batch, classes, n), ["logits"], request)
                check(got, wants[n], request, ["logits"])
        except BaseException as exc:
            problems.append(exc)

    threads = [threading.Thread(target=caller, args=(plans[i::6],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert 1 <= len(machine.cuda.streams) <= MAX_WORKERS


def test_closing_waits_for_the_calls_that_run(machine, feeds, monkeypatch):
    before = Buffer.alive
    backend = machine.open()
    begun, go = threading.Event(), threading.Event()
    original = pool.Worker.run

    def slow(self, call):
        begun.set()
        assert go.wait(20)
        return original(self, call)

    monkeypatch.setattr(pool.Worker, "run", slow)
    results = []
    caller = threading.Thread(target=lambda: results.append(backend.infer(feeds())))
    caller.start()
    assert begun.wait(20)
    closer = threading.Thread(target=backend.close)
    closer.start()
    closer.join(0.2)
    assert closer.is_alive()
    go.set()
    caller.join()
    closer.join()
    assert results[0]["logits"].shape == (2, 4)
    assert Buffer.alive == before
    with pytest.raises(BackendError, match="closed; load the model again"):
        backend.infer(feeds())
    backend.close()


def test_a_session_on_an_engine(machine, monkeypatch):
    """The front door: the same explanations as from the model on the CPU."""
    engine = write_engine(machine.folder)
    random = np.random.default_rng(3)
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    with load(engine.with_name("model.onnx"), backend="ort", threads=1) as session:
        want = session.explain(images, top_k=2)
    with load(engine, batch_size=4) as session:
        assert session.backend_name == "tensorrt"
        for _ in range(3):  # the last one by a graph
            for row, expected in zip(session.explain(images, top_k=2), want, strict=True):
                for one, other in zip(row, expected, strict=True):
                    assert (one.class_id, one.label) == (other.class_id, other.label)
                    assert one.evidence == pytest.approx(other.evidence, rel=1e-5)
                    np.testing.assert_allclose(one.heatmap, other.heatmap, atol=3e-5)
    assert machine.cuda.launched == 1
    with pytest.raises(UsageError, match="batch_size=4"), load(engine) as session:
        session.explain(images * 2)


def test_nothing_is_imported_before_it_is_used():
    code = (
        "import sys; import sigcam.convert.tensorrt.build\n"
        "import sigcam.runtime.backends.tensorrt.backend\n"
        "print(sorted({'tensorrt', 'tensorrt_rtx', 'onnx', 'onnxruntime', 'torch', 'cuda.bindings'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_is_no_engine(machine):
    write_engine(machine.folder)
    with pytest.raises(ArtifactError, match=r"sigcam build-engine .*model\.onnx"):
        machine.open(machine.folder / "model.onnx")
    machine.cuda.missing = "there is no libcuda"
    with pytest.raises(BackendUnavailableError, match="there is no libcuda; the backend 'ort'"):
        machine.open()


def test_what_tensorrt_refuses_to_load(machine):
    machine.module.refuses = True
    with pytest.raises(BackendError, match="a broken engine; build it again here with"):
        machine.open()
    machine.install("tensorrt_rtx")
    machine.module.validity = (machine.module.EngineValidity.INVALID, 6)
    engine = write_engine(machine.folder, "tensorrt_rtx")
    for flags, error, message in (
        (6, ArtifactError, r"\(UNSUPPORTED_CC, OLD_CUDA_DRIVER\); build it again .*; update NVID"),
        (4, BackendError, r"\(OLD_CUDA_DRIVER\); update NVIDIA's driver$"),
        (16, BackendError, r"\(INSUFFICIENT_GPU_MEMORY\); free memory of the GPU, or"),
        (0, ArtifactError, r"\(TensorRT gave no reason\); build it again here"),
    ):
        machine.module.validity = (machine.module.EngineValidity.INVALID, flags)
        with pytest.raises(error, match=message):
            machine.open(engine)


def test_what_tensorrt_warns_of_while_loading_is_logged(machine, caplog):
    machine.install("tensorrt_rtx")
    machine.module.warns = "it was made on another model of device"
    machine.module.validity = (machine.module.EngineValidity.SUBOPTIMAL, 0)
    machine.open(write_engine(machine.folder, "tensorrt_rtx"))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "may be slower here" in messages[0]
    assert messages[1] == "TensorRT: it was made on another model of device"


def test_an_engine_that_is_refused_goes_before_its_context(machine):
    """The machine's contexts look for engines that are kept, by tracebacks for example."""
    engine = write_engine(machine.folder)
    machine.module.shapes = {**machine.module.shapes, "class_ids": ((1, 1),) * 3}
    with pytest.raises(ArtifactError, match="its sidecar says"):
        machine.open(engine)
    machine.module.lacks = {"logits"}
    with pytest.raises(ArtifactError, match="which NumPy lacks"):
        machine.open(engine)
