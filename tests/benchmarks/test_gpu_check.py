"""benchmarks/gpu/check.py without a GPU: its comparisons, its isolation, its report."""

import functools
import json
import shutil
import sys
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.gpu import (
    backends,
    check,
    compare,
    installed,
    kernels,
    latency,
    process,
    report,
    sanitizer,
    summary,
)
from sigcam.core.errors import BackendUnavailableError
from sigcam.core.spec import ClassSelection
from sigcam.kernels.arguments import whole
from sigcam.kernels.calls import DeviceInfo
from sigcam.kernels.errors import CudaUnavailableError
from sigcam.kernels.plan import plan
from sigcam.kernels.shapes import Cams, Heatmaps, Inputs
from sigcam.runtime.session import load


@pytest.fixture(scope="module")
def parts():
    """The modules of benchmarks/gpu."""
    return SimpleNamespace(
        check=check,
        kernels=kernels,
        backends=backends,
        installed=installed,
        compare=compare,
        process=process,
        sanitizer=sanitizer,
        latency=latency,
        report=report,
    )


# ---- kernels -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_cpu(parts, tmp_path_factory):
    """A runner with the kernel itself, compiled for the CPU."""
    from tests.support.host_cuda import library, run_in_library

    lib = library(tmp_path_factory.mktemp("host") / "kernel.so")

    def runner(case, given):
        # As NumPy's memory is; CAMs need no more than that.
        own = isinstance(case.inputs, Inputs)
        inputs = replace(case.inputs, alignment=4) if own else case.inputs
        found = run_in_library(lib, plan(inputs, case.heatmaps, processors=8), **given)
        return parts.kernels.Made(found.heatmaps, found.valid, found.cams)

    return runner


@pytest.mark.slow
def test_the_kernel_passes_the_comparison(parts, on_cpu, monkeypatch):
    few = parts.kernels.small_cases()
    assert len(few) > 20
    assert len(list(parts.kernels.cases())) > 100
    assert any(case.heatmaps.ragged and case.inputs.batch > 1 for case in few)
    assert any(isinstance(case.inputs, Cams) for case in few)
    monkeypatch.setattr(parts.kernels, "cases", lambda: iter(few[::4]))
    figures = parts.kernels.check_values(on_cpu)
    assert figures["cases"] == len(few[::4])
    assert figures["failed"] == 0
    assert figures["worst"]["cams"] < 1e-6


def broken(kind):
    def change(made):
        if kind == "cams":
            made.cams[...] *= 1.001
        elif kind == "heatmaps":
            last = made.heatmaps[-1]
            last[..., 0] = 255 if last.dtype == np.uint8 else 0.5
        elif kind == "flags":
            made.valid[0, 0] ^= 1
        elif kind == "unwritten":
            made.valid[made.valid == 1] = 255
        else:
            made.cams[0, 0, 0, 0] = np.nan
        return made

    return change


@pytest.mark.parametrize("kind", ["cams", "heatmaps", "flags", "unwritten", "nan"])
def test_a_wrong_kernel_fails_the_comparison(parts, on_cpu, kind, monkeypatch):
    case = parts.kernels.small_cases()[0]
    change = broken(kind)
    monkeypatch.setattr(parts.kernels, "cases", lambda: iter([case, case]))
    with pytest.raises(parts.report.CheckFailed, match="2 of 2 cases: ") as caught:
        parts.kernels.check_values(lambda *a: change(on_cpu(*a)))
    assert caught.value.figures["failed"] == 2


def test_runs_that_differ_in_a_bit_are_found(parts):
    runs = []

    def runner(case, given):
        runs.append(case)
        shape = (case.inputs.batch, case.inputs.classes)
        heatmaps = np.zeros((*shape, 4, 4), np.float32)
        if len(runs) == 3:
            heatmaps[-1, -1, -1, -1] = 1e-45
        return parts.kernels.Made(heatmaps, np.ones(shape, np.uint8), np.zeros((*shape, 7, 7)))

    with pytest.raises(parts.report.CheckFailed, match="run 3 gave other bits"):
        parts.kernels.check_repeats(runner, repeats=4)


def test_a_sanitizer_that_is_not_there(parts, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(parts.report.CheckSkipped, match="compute-sanitizer"):
        parts.sanitizer.check_sanitizer("memcheck")


CLEAN = "========= ERROR SUMMARY: 0 errors"
NO_HAZARD = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
@pytest.mark.parametrize(
    ("tool", "summary", "short", "code", "problem"),
    [
        ("racecheck", NO_HAZARD, 0, 0, None),
        ("memcheck", CLEAN, 0, 0, None),
        ("memcheck", CLEAN, 0, 9, "ended with code 9"),
        ("memcheck", "========= ERROR SUMMARY: 10 errors", 0, 0, "didn't say"),
        ("racecheck", NO_HAZARD.replace("(0", "(1"), 0, 0, "didn't say"),
        ("racecheck", CLEAN, 0, 0, "didn't say"),
        ("initcheck", "", 0, 0, "didn't say"),
        ("initcheck", CLEAN, 1, 0, "didn't see all"),
    ],
)
def test_what_a_sanitizer_says(parts, monkeypatch, tmp_path, tool, summary, short, code, problem):
    stand_in = tmp_path / "compute-sanitizer"
    ran = len(parts.kernels.small_cases()) - short
    stand_in.write_text(
        f'#!/bin/sh\necho "asked: $1 $2 $3 $4 $8"\necho "cases done: {ran}"\n'
        f'echo "{summary}"\nexit {code}\n'
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    if problem is None:
        told = {"tool": tool, "cases": ran, "summary": summary.strip("= ")}
        assert parts.sanitizer.check_sanitizer(tool) == told
    else:
        with pytest.raises(parts.report.CheckFailed, match=f"^{tool} {problem}") as caught:
            parts.sanitizer.check_sanitizer(tool)
        assert f"asked: --tool {tool} --error-exitcode 9 {tool}" in str(caught.value)


@pytest.mark.parametrize("tool", ["memcheck", "initcheck"])
def test_the_program_for_the_sanitizer(parts, on_cpu, monkeypatch, tool):
    poisoned = []

    def on_gpu(*, poison):
        poisoned.append(poison)
        return on_cpu

    monkeypatch.setattr(parts.kernels, "OnGpu", on_gpu)
    assert parts.sanitizer.run_cases(tool) == len(parts.kernels.small_cases())
    assert poisoned == [tool == "memcheck"]


class FakeDriver:
    """Memory that remembers what it was filled with."""

    def __init__(self):
        self.filled = {}
        self.count = 0

    def DeviceBuffer(self, size):  # noqa: N802 (the driver's name)
        self.count += 1
        return SimpleNamespace(address=self.count << 32, size=size)

    def memset(self, address, value, size, stream):
        self.filled[address] = (value, size)

    def copy_to_device(self, address, array, size, stream):
        assert address not in self.filled


@pytest.mark.parametrize("poison", [True, False])
def test_what_the_kernels_write_is_poisoned_before(parts, poison):
    case = parts.kernels.small_cases()[0]
    driver = FakeDriver()
    prepared = []
    kernel = SimpleNamespace(
        plan=lambda inputs, heatmaps: plan(inputs, heatmaps, processors=8),
        prepare_workspace=lambda *given: prepared.append(dict(driver.filled)),
    )
    gpu = SimpleNamespace(driver=driver, kernel=kernel, poison=poison)
    stream = SimpleNamespace(synchronize=lambda: None)
    job = parts.kernels.Job(gpu, case, parts.kernels.data(case), stream)
    outputs = ("heatmaps", "valid", "workspace") if poison else ()
    expected = {job.addresses[n]: (0xFF, job.buffers[n].size) for n in outputs}
    assert driver.filled == expected
    assert prepared == [expected]  # the counters are zeroed after that


def test_the_maps_of_each_image_are_found(parts):
    """In the memory of all of them, of one size or of several."""
    cams = Cams(2, 3, 2, 2)
    same = plan(cams, Heatmaps(whole(4, 2), whole(5, 2)), processors=1)
    numbers = np.arange(120)
    found = parts.kernels.images_of(same, numbers)
    assert [one.shape for one in found] == [(3, 4, 5)] * 2
    assert found[1][0, 0, 0] == 60
    axes = [whole(4, 2), whole(2, 2)], [whole(5, 2), whole(10, 2)]
    found = parts.kernels.images_of(plan(cams, Heatmaps(*axes), processors=1), numbers)
    assert [one.shape for one in found] == [(3, 4, 5), (3, 2, 10)]
    assert found[1][0, 0, 0] == 60


# ---- backends ----------------------------------------------------------------------------


@pytest.fixture
def answers(make_artifact, parts):
    with load(make_artifact(profile="split"), "ort") as session:
        return [e for one in session.explain(parts.compare.images(), [0, 2, 3]) for e in one]


def test_equal_answers_are_within_the_limits(parts, answers):
    figures = parts.compare.differences(answers, answers)
    assert figures["cam_max"] == figures["heatmap_max"] == figures["probability"] == 0
    assert figures["answers"] == len(answers) == 15
    assert figures["valid"] > 0
    assert parts.compare.judge("x", figures, parts.compare.EXACT) == []


def test_every_turn_has_other_images_of_the_same_sizes(parts):
    turns = [parts.compare.images(turn) for turn in range(parts.compare.TURNS)]
    for same in zip(*turns, strict=True):
        assert len({one.shape for one in same}) == 1
        assert len({one.tobytes() for one in same}) == len(turns) == 4


SMALL = np.full((480, 640), 0.5, np.float32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"probability": 0.9}, "probability is off"),
        ({"probability": float("nan")}, "probability is off by nan"),
        ({"evidence": float("nan")}, "probability is off by nan"),
        ({"cam": np.ones((7, 7), np.float32)}, "CAM is off"),
        ({"cam": np.full((7, 7), np.nan, np.float32)}, "valid on one of them only"),
        ({"_made": (SMALL, True)}, "heatmap is off by 0."),
        ({"_made": (SMALL * np.nan, True)}, "heatmap is off by nan"),
    ],
)
def test_other_answers_are_not(parts, answers, change, said):
    other = [replace(answers[0], **change), *answers[1:]]
    figures = parts.compare.differences(other, answers)
    assert said in "; ".join(parts.compare.judge("x", figures, parts.compare.EXACT))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_made": (SMALL[:1], True)}, r"a heatmap of \[1, 640\] came for one of \[480, 640\]"),
        ({"cam": np.ones((1, 7), np.float32)}, r"a CAM of \[1, 7\]"),
        ({"evidence": None}, "evidence came from one of them only"),
    ],
)
def test_answers_of_another_kind_are_refused(parts, answers, change, said):
    other = [replace(answers[0], **change), *answers[1:]]
    for pair in ((other, answers), (answers, other)):
        with pytest.raises(parts.report.CheckFailed):
            parts.compare.differences(*pair)
    with pytest.raises(parts.report.CheckFailed, match=said):
        parts.compare.differences(other, answers)


def test_answers_for_other_classes_are_refused(parts, answers):
    with pytest.raises(parts.report.CheckFailed, match="class 2 came for class 0"):
        parts.compare.differences(answers[1:2], answers[:1])
    with pytest.raises(parts.report.CheckFailed, match="14 answers came for 15"):
        parts.compare.differences(answers[1:], answers)


def test_no_answers_are_a_failure(parts):
    figures = parts.compare.differences([], [])
    said = parts.compare.judge("x", figures, parts.compare.EXACT)
    assert said == ["x: there were no answers to compare"]


class Once:
    """A session that answers right until a call, and from then on with that call's answers.

    As a captured graph does that doesn't read its input.
    """

    def __init__(self, session, stale):
        self.session, self.stale = session, stale
        self.calls, self.kept = {}, {}

    def explain(self, asked, **question):
        count = len(asked)
        self.calls[count] = self.calls.get(count, 0) + 1
        if self.calls[count] <= self.stale:
            self.kept[count] = self.session.explain(asked, **question)
        return self.kept[count]


@pytest.mark.parametrize("stale", [1, 2, 3, 4])
def test_a_call_that_is_replayed_is_compared(parts, make_artifact, stale):
    with load(make_artifact(profile="split"), "ort") as session:
        found = parts.compare.differences(*parts.compare.ask(Once(session, stale), session))
        good = parts.compare.differences(*parts.compare.ask(session, session))
    assert good["heatmap_max"] == good["probability"] == 0
    # Four turns of 5 + 1 images and 5 from each thread; of the classes the artifact has two.
    assert good["answers"] == (4 * 6 + 4 * 5) * 2
    problems = parts.compare.judge("x", found, parts.compare.EXACT)
    assert problems, found


def test_a_backend_that_is_not_installed_is_skipped(parts, make_artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(parts.backends, "missing_backend", lambda backend: f"no {backend} here")
    with pytest.raises(parts.report.CheckSkipped, match="no ort-cuda here"):
        parts.backends.check_backend("ort-cuda", make_artifact(), tmp_path, "x")
    with pytest.raises(parts.report.CheckSkipped, match="no tensorrt here"):
        parts.backends.check_latency("tensorrt", tmp_path, 100)


def test_one_that_is_installed_and_does_not_start_has_failed(
    parts, make_artifact, tmp_path, monkeypatch
):
    def broken(*given):
        raise BackendUnavailableError("libcudnn.so.9 is missing")

    monkeypatch.setattr(parts.backends, "missing_backend", lambda backend: None)
    monkeypatch.setattr(parts.backends, "open_backend", broken)
    with pytest.raises(parts.report.CheckFailed, match="x: BackendUnavailableError: libcudnn"):
        parts.backends.check_backend("ort-cuda", make_artifact(), tmp_path, "x")
    (tmp_path / "classifier.onnx").touch()
    latency = functools.partial(parts.backends.check_latency, "ort-cuda", tmp_path, 100)
    assert parts.check.outcome(lambda: latency)["status"] == "failed"


def test_what_is_installed(parts, monkeypatch, tmp_path):
    modules, packages = set(), set()

    def find_spec(name):
        places = [str(tmp_path)]
        return SimpleNamespace(submodule_search_locations=places) if name in modules else None

    def distribution(name):
        if name not in packages:
            raise PackageNotFoundError(name)

    monkeypatch.setattr(parts.installed.importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(parts.installed, "distribution", distribution)
    monkeypatch.setattr(parts.installed.ctypes.util, "find_library", lambda name: None)

    def there():
        return [one for one in parts.installed.BACKENDS if not parts.installed.missing_backend(one)]

    assert there() == []
    modules.add("onnxruntime")  # the build for the CPU
    assert there() == []
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").touch()
    assert there() == ["ort-cuda"]
    modules.clear()
    packages.add("onnxruntime-gpu")
    assert there() == ["ort-cuda"]
    modules.add("tensorrt_rtx")
    assert there() == ["ort-cuda", "tensorrt"]
    modules.add("tensorrt_libs")
    assert there() == ["ort-cuda", "ort-tensorrt", "tensorrt"]


def test_a_file_is_compared(parts, make_artifact, tmp_path, monkeypatch):
    good = make_artifact(profile="split")
    monkeypatch.setitem(parts.compare.LIMITS, "ort", parts.compare.EXACT)
    check = parts.backends.check_backend
    found = check("ort", good, tmp_path, "model 0")["differences"]
    assert list(found) == ["model 0"]
    assert found["model 0"]["heatmap_max"] == 0
    with pytest.raises(parts.report.CheckFailed, match="y: there is no file to compare"):
        check("ort", tmp_path / "none.onnx", tmp_path, "y")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"x")
    with pytest.raises(parts.report.CheckFailed, match="y: ArtifactError"):
        check("ort", bad, tmp_path, "y")


def test_how_a_backend_ran_is_told(parts, make_artifact, tmp_path, monkeypatch):
    from sigcam.runtime.backends.onnxruntime.cpu import OrtBackend

    monkeypatch.setattr(OrtBackend, "description", "without CUDA graphs", raising=False)
    found = parts.backends.compare_file(make_artifact(profile="split"), "ort", tmp_path, "x")
    assert found["description"] == "without CUDA graphs"


def test_differences_fail_the_check(parts, make_artifact, tmp_path, monkeypatch):
    strict = replace(parts.compare.EXACT, correlation=2.0)
    monkeypatch.setitem(parts.compare.LIMITS, "ort", strict)
    good = make_artifact(profile="split")
    with pytest.raises(parts.report.CheckFailed, match="x: CAMs correlate only") as caught:
        parts.backends.check_backend("ort", good, tmp_path, "x")
    assert list(caught.value.figures["differences"]) == ["x"]


def test_engines_are_built_in_the_folder_of_the_check(parts, tmp_path, monkeypatch):
    from sigcam.convert.tensorrt import build

    built = []

    def build_engine(model, target, options):
        built.append((model, target))
        target.write_bytes(b"engine")

    monkeypatch.setattr(build, "build_engine", build_engine)
    theirs, own = tmp_path / "theirs", tmp_path / "own"
    theirs.mkdir()
    own.mkdir()
    model = theirs / "secret.onnx"
    (theirs / "secret.engine").write_bytes(b"an old one")
    for _ in range(2):
        made = parts.backends.model_for("tensorrt", model, own, "model 0")
        assert made == own / "model 0.engine"
    assert built == [(model, own / "model 0.engine")]
    assert parts.backends.model_for("ort-cuda", model, own, "model 0") == model
    assert [one.name for one in theirs.iterdir()] == ["secret.engine"]


def test_the_methods_are_those_of_the_export(parts):
    from tests.support.methods import WITH_WEIGHTS

    assert set(parts.installed.METHODS) == set(WITH_WEIGHTS)


@pytest.mark.parametrize("backend", ["tensorrt", "ort-cuda"])
def test_what_latencies_are_compared_with(parts, make_artifact, tmp_path, monkeypatch, backend):
    from sigcam.runtime.backends import open_backend

    for name, profile in (("time-split", "split"), ("time-fused", "fused")):
        shutil.copy(
            make_artifact(profile=profile, classes=ClassSelection()), tmp_path / f"{name}.onnx"
        )
    shutil.copy(tmp_path / "time-split.onnx", tmp_path / "classifier.onnx")
    asked = []
    monkeypatch.setattr(parts.backends, "missing_backend", lambda backend: None)
    monkeypatch.setattr(parts.backends, "model_for", lambda b, path, *rest: path)
    monkeypatch.setattr(
        parts.backends, "open_backend",
        lambda path, name, options: asked.append(path.stem) or open_backend(path, "ort", options),
    )  # fmt: skip

    def measure(calls, clocks, baselines, *, rounds, warmup):
        for name, call in calls.items():
            if not name.startswith("heatmaps"):  # which the CPU's backend doesn't make
                call()
        return {name: baselines.get(name) for name in calls}

    monkeypatch.setattr(parts.backends, "measure", measure)
    found = parts.backends.check_latency(backend, tmp_path, 100)["latency"]
    if backend == "tensorrt":
        assert list(found) == ["logits", "cams", "heatmaps of cams", "heatmaps", "explain"]
        assert set(found.values()) == {None}
        assert "classifier" not in asked
    else:
        assert list(found) == ["network", "cams", "heatmaps of cams", "heatmaps", "explain"]
        assert set(list(found.values())[1:]) == {"network"}
        assert found["network"] is None
        assert asked[0] == "classifier"


class FakeClock:
    def start(self):
        self.begun = True

    def stop(self):
        assert self.begun
        return 2.5


def test_latencies(parts):
    calls = {"network": lambda: time.sleep(0.001), "heatmaps": lambda: time.sleep(0.002)}
    found = parts.latency.measure(
        calls, {"heatmaps": FakeClock()}, {"heatmaps": "network"}, rounds=15, warmup=2
    )
    assert found["heatmaps"]["between_events_ms"] == {"p50": 2.5, "p95": 2.5, "p99": 2.5}
    assert found["network"]["between_events_ms"] is None
    assert found["network"]["ratio"] is None
    assert 1.2 < found["heatmaps"]["ratio"] < 3
    wall = found["heatmaps"]["wall_ms"]
    assert 1.9 < wall["p50"] <= wall["p95"] <= wall["p99"]


# ---- isolation, report, exit codes -------------------------------------------------------


def run_code(parts, code, tmp_path, timeout=60.0):
    file = tmp_path / "result.json"
    command = [sys.executable, "-c", code, str(file)]
    return parts.report.run_isolated("a check", command, file, timeout)


WRITES = "import sys; open(sys.argv[1], 'w').write({!r})"


def test_a_check_that_ends_well(parts, tmp_path):
    told = json.dumps({"status": "passed", "detail": "", "figures": {"a": 1}})
    result = run_code(parts, WRITES.format(told), tmp_path)
    assert (result.status, result.figures) == ("passed", {"a": 1})


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", "ended with code"),
        ("raise SystemExit('out of memory')", "out of memory"),
        ("import time; time.sleep(60)", "stopped after 0.5 s"),
        (WRITES.format("not json"), "left no result"),
        (WRITES.format('{"status": "fine", "detail": "", "figures": {}}'), "left no result"),
    ],
)
def test_a_check_that_does_not(parts, tmp_path, code, said):
    result = run_code(parts, code, tmp_path, 0.5 if "sleep" in code else 60.0)
    assert result.status == "failed"
    assert said in result.detail


TOLD = '{"status": "%s", "detail": "x", "figures": {"a": {"b": ["see /opt/acme/x.so"]}}}'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "after", "said"),
    [
        ("passed", "; import os; os.abort()", "ended with code -6, after it had told"),
        ("skipped", "; sys.exit('at the end')", "code 1, after it had told the result 'skipped'"),
        ("passed", "; sys.stdout.close(); import time; time.sleep(60)", "stopped after 2 s"),
        ("failed", "; sys.exit(3)", "x"),
    ],
)
def test_a_check_that_tells_a_result_and_then_breaks(parts, tmp_path, status, after, said):
    code = f"import sys; f = open(sys.argv[1], 'w'); f.write({TOLD % status!r}); f.close()"
    result = run_code(parts, code + after, tmp_path, 2 if "sleep" in after else 60)
    assert result.status == "failed"
    assert said in result.detail
    assert result.figures == {"a": {"b": ["see <path>/x.so"]}}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX's")
@pytest.mark.parametrize("end", ["time.sleep(60)", "sys.exit(1)"])
def test_what_a_process_started_ends_with_it(parts, tmp_path, end):
    """The other process would write a file, a second after its parent was ended."""
    file = tmp_path / "late"
    late = f"import time; time.sleep(2.5); open({str(file)!r}, 'w')"
    silent = "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL"
    starts = f"subprocess.Popen([sys.executable, '-c', {late!r}], {silent})"
    code = f"import subprocess, sys, time; {starts}; {end}"
    start = time.monotonic()
    done = parts.process.run_process([sys.executable, "-c", code], 1.5)
    assert done.code == (1 if "exit" in end else None)
    time.sleep(max(0.0, start + 4 - time.monotonic()))
    assert not file.exists()


def test_how_checks_end(parts):
    def ends(error):
        def check():
            if error is not None:
                raise error
            return {"n": 1}

        return parts.check.outcome(lambda: check)

    assert ends(None) == {"status": "passed", "detail": "", "figures": {"n": 1}}
    assert ends(parts.report.CheckSkipped("why"))["status"] == "skipped"
    failed = ends(parts.report.CheckFailed("why", {"worst": 2}))
    assert (failed["status"], failed["figures"]) == ("failed", {"worst": 2})
    assert ends(ZeroDivisionError("x"))["detail"] == "ZeroDivisionError: x"


def test_nothing_of_the_machine_or_its_user_is_told(parts, monkeypatch):
    monkeypatch.setattr(parts.report.platform, "node", lambda: "workstation-7")
    monkeypatch.setattr(parts.report.getpass, "getuser", lambda: "alice")
    text = parts.report.anonymous(
        f"{Path.home()}/x.onnx: cannot read /home/alice/models/cat.onnx on workstation-7, "
        "see https://onnxruntime.ai/docs and C:\\Users\\alice\\cat.onnx; alice"
    )
    for word in ("alice", "workstation-7", str(Path.home()), "models"):
        assert word not in text
    assert "cat.onnx" in text
    assert "https://onnxruntime.ai/docs" in text
    assert parts.report.anonymous("5/7 cases, and/or ./a") == "5/7 cases, and/or ./a"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("LD_LIBRARY_PATH=/opt/acme/lib:/srv/secretproj/lib",
         "LD_LIBRARY_PATH=<path>/:<path>/"),
        ("file:/data/acme/x.onnx", "file:<path>/x.onnx"),
        ("file:///data/acme/x.onnx", "file:<path>/x.onnx"),
        ("C:/Users/john/x.onnx", "<path>/x.onnx"),
        (r"\\acme\john\x.onnx", "<path>/x.onnx"),
        ("'/mnt/My Project/acme/m.onnx'", "'<path>/m.onnx'"),
        ('"C:\\My Project\\m.onnx" and \'/a/b c/d.so\'', '"<path>/m.onnx" and \'<path>/d.so\''),
        ("in /srv/secretproj.", "in <path>/."),
        ("/hid den/acme/m.onnx is bad", "<path>/m.onnx is bad"),
        ("/hid den/m.onnx is bad", "<path>/m.onnx is bad"),
    ],
)  # fmt: skip
def test_no_folder_is_told(parts, text, told):
    assert parts.report.anonymous(text, [Path("/hid den")]) == told


def test_no_folder_is_told_of_the_users_own(parts):
    for text in (f"{Path.home()}/acme/x.onnx", f"'{Path.cwd()}/ac me/x.onnx'"):
        assert parts.report.anonymous(text).strip("'") == "<path>/x.onnx"


GPU = DeviceInfo(0, "NVIDIA Test", (8, 6), 40)


def made_report(parts, *statuses, values="passed"):
    report = parts.report.Report(parts.report.machine([GPU], (13, 0)), {"numpy": "2"})
    row = {"wall_ms": {"p50": 1.0, "p95": 2.0, "p99": 3.0}, "between_events_ms": None}
    row["ratio"] = None
    with_heatmaps = {**row, "between_events_ms": row["wall_ms"], "ratio": 1.07}
    figures = {"latency": {"network": row, "heatmaps": with_heatmaps}}
    report.results.append(parts.report.Result("values", values, "", 1.0))
    for status in statuses:
        report.results.append(parts.report.Result("latency a b", status, "", 1.0, figures))
    return report


def test_the_report(parts, tmp_path):
    report = made_report(parts, "passed", "skipped")
    assert report.exit_code(must_compare=True) == 0
    assert made_report(parts, "passed", "failed").exit_code(must_compare=True) == 1
    report.write(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["schema"] == "sigcam-gpu-check-2"
    assert data["machine"]["gpus"] == [
        {"name": "NVIDIA Test", "capability": "8.6", "multiprocessors": 40}
    ]
    assert data["machine"]["driver_cuda"] == "13.0"
    assert set(data["machine"]) == {"gpus", "driver_cuda", "system", "python", "cores"}
    assert [one["status"] for one in data["results"]] == ["passed", "passed", "skipped"]
    text = report.text(must_compare=True)
    assert "network 1.00, heatmaps 1.00 (+7.0%)" in text
    assert "14" in text
    assert "the classic map of about 100 ms" in text
    assert text.endswith("2 passed, 0 failed, 1 skipped")
    assert "Latency" not in made_report(parts).text(must_compare=True)


def test_without_values_that_were_compared_nothing_passed(parts):
    assert made_report(parts, "passed").exit_code(must_compare=True) == 0
    report = made_report(parts, "passed", values="skipped")
    assert report.exit_code(must_compare=True) == 1
    assert report.text(must_compare=True).endswith("values weren't shown to be right")
    assert report.exit_code(must_compare=False) == 0  # they weren't asked for


def test_the_worst_report_fits_two_screens(parts):
    """Everything fails with long reasons, and there are figures of everything."""
    report = made_report(parts)
    row = {"shape": [32, 2048, 14, 14], "classes": 1000, "size": [1024, 1024], "half": False,
           "us": 123456.7, "gb_s": 3210.1, "bytes_": True, "interpolation": "bilinear",
           "cold": True, "what": "torch, compiled"}  # fmt: skip
    wall = {
        "wall_ms": {"p50": 1.0, "p95": 2.0, "p99": 3.0},
        "between_events_ms": None,
        "ratio": 1.5,
    }
    every = parts.check.names(tuple(parts.installed.NETWORKS), [])
    others = [f"compare {backend} {network} {name}" for backend in parts.installed.BACKENDS
              for network in parts.installed.NETWORKS
              for name in parts.installed.compared(network)]  # fmt: skip
    for name in (*every, *others, *(f"latency ort-cuda {n}" for n in range(12))):
        figures = {"rows": [row] * 40}
        if name.startswith("latency"):
            figures = {
                "latency": dict.fromkeys(
                    ("network", "cams", "heatmaps of cams", "heatmaps", "explain"), wall
                )
            }
        elif name == "host":
            figures = {"us": 1.0}
        report.results.append(
            parts.report.Result(name, "failed", "a reason\nof many lines, " * 50, 1.0, figures)
        )
    lines = report.text(must_compare=True).splitlines()
    assert len(lines) <= summary.LINES + 1
    assert max(map(len, lines)) <= summary.WIDTH
    text = "\n".join(lines)
    assert "more in the JSON" in text
    assert "failed: compile: a reason of many lines" in text
    assert "NVIDIA Test (8.6, 40 multiprocessors)" in text


def test_without_a_gpu_one_line_and_exit_code_3(parts, monkeypatch, tmp_path, capsys):
    def missing():
        raise CudaUnavailableError("the driver's library\nisn't there")

    monkeypatch.setattr(parts.check.driver, "available", missing)
    out = tmp_path / "out.json"
    assert parts.check.main(["--out", str(out)]) == 3
    assert capsys.readouterr().out == (
        "no NVIDIA GPU can be used: the driver's library isn't there\n"
    )
    assert not out.exists()


@pytest.fixture
def one_gpu(parts, monkeypatch):
    monkeypatch.setattr(parts.check.driver, "available", lambda: None)
    monkeypatch.setattr(parts.check.driver, "devices", lambda: [GPU])
    monkeypatch.setattr(parts.check.driver, "driver_version", lambda: (13, 0))


@pytest.mark.parametrize("status", ["passed", "failed"])
def test_with_one_every_check_is_run_and_reported(
    parts, monkeypatch, tmp_path, status, one_gpu, capsys
):
    ran = []

    def isolated(name, command, file, timeout, hidden):
        assert hidden == [model, tmp_path]
        ran.append((name, command))
        if len(ran) > 1:  # what was done so far is written, should this one never end
            assert len(json.loads(out.read_text())["results"]) == len(ran) - 1
        return parts.report.Result(name, status if name == "values" else "passed", "", 0.1)

    model = tmp_path / "mine.onnx"
    model.write_bytes(b"x")
    monkeypatch.setattr(parts.check, "run_isolated", isolated)
    monkeypatch.setattr(parts.installed, "missing_backend", lambda backend: None)
    out = tmp_path / "out.json"
    given = ["--out", str(out), "--network", "wsol-vgg16", "--model", str(model)]
    assert parts.check.main(given) == (1 if status == "failed" else 0)
    said = capsys.readouterr()
    assert "values" in said.err  # progress
    assert len(said.out.splitlines()) <= summary.LINES + 2
    names = [name for name, _ in ran]
    assert len(names) == len(set(names)) == 6 + 7 + 4 + 1 + 3 * 2 + 3 + 3
    assert {"compile", "sanitizer initcheck",
            "compare tensorrt wsol-vgg16 gradcam-split", "model ort-cuda 0",
            "latency ort-tensorrt wsol-vgg16"} <= set(names)  # fmt: skip
    assert len(json.loads(out.read_text())["results"]) == len(names)
    assert str(tmp_path) not in out.read_text()
    for name, command in ran:
        assert command[2:4] == ["--one", name]
        assert callable(parts.check.find(name, tmp_path, [model], 10))


def test_nothing_is_exported_for_backends_that_are_not_there(parts, monkeypatch):
    missing = {"ort-cuda": "no ORT", "ort-tensorrt": None, "tensorrt": "no TensorRT"}
    monkeypatch.setattr(parts.installed, "missing_backend", missing.get)
    found = list(parts.check.names(["wsol-vgg16"], [Path("a.onnx")]))
    assert "export wsol-vgg16" in found
    assert {
        name.split()[1] for name in found if name.startswith(("compare", "model", "latency"))
    } == {"ort-tensorrt"}
    assert [name for name in found if name.startswith("backend")] == [
        "backend ort-cuda", "backend tensorrt",
    ]  # fmt: skip
    monkeypatch.setattr(parts.installed, "missing_backend", lambda backend: "nothing there")
    found = list(parts.check.names(list(parts.installed.NETWORKS), [Path("a.onnx")]))
    assert not [
        name for name in found if name.split()[0] in ("export", "compare", "model", "latency")
    ]
    told = parts.check.outcome(lambda: parts.check.find("backend ort-cuda", Path(), [], 10))
    assert (told["status"], told["detail"]) == ("skipped", "nothing there")


@pytest.mark.parametrize(
    ("only", "want"),
    [
        (["values"], ["values"]),
        (["interop"], ["interop torch", "interop cupy"]),
        (["sanitizer racecheck", "compile"], ["compile", "sanitizer racecheck"]),
        (["times", "times"], ["times"]),
    ],
)
def test_only_some_checks(parts, only, want, capsys):
    given = [part for words in only for part in ("--only", words)]
    assert parts.check.main(["--list", *given]) == 0
    assert capsys.readouterr().out.split("\n")[:-1] == want


@pytest.mark.parametrize("wrong", ["value", "values 3", "", "sanitizer x"])
def test_only_checks_that_there_are(parts, wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        parts.check.main(["--only", wrong])
    assert caught.value.code == 2
    assert "there are compile, values" in capsys.readouterr().err


def test_when_time_is_over_the_rest_is_skipped(parts, monkeypatch, tmp_path, one_gpu):
    limits = []

    def isolated(name, command, file, timeout, hidden):
        limits.append(timeout)
        time.sleep(0.11)
        return parts.report.Result(name, "passed", "", 0.1)

    monkeypatch.setattr(parts.check, "run_isolated", isolated)
    out = tmp_path / "out.json"
    given = ["--out", str(out), "--seconds", "0.2", "--only", "compile", "--only", "repeats",
             "--only", "streams"]  # fmt: skip
    assert parts.check.main(given) == 0
    found = {one["name"]: one for one in json.loads(out.read_text())["results"]}
    assert [one["status"] for one in found.values()] == ["passed", "passed", "skipped"]
    assert found["streams"]["detail"] == "the 0.2 seconds were over"
    assert all(limit <= 0.2 for limit in limits)


def test_a_check_in_its_own_process(parts, tmp_path):
    """The child's side for real: without a GPU, compiling past the driver fails and says so."""
    file = tmp_path / "result.json"
    own = [sys.executable, parts.check.__file__]
    command = [*own, "--one", "values", "--folder", str(tmp_path), "--out", str(file)]
    result = parts.report.run_isolated("values", command, file, 120)
    if parts.check.no_gpu() is None:
        pytest.skip("there is a GPU")
    assert result.status == "failed"
    assert "CudaUnavailableError" in result.detail
