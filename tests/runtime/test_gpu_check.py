"""benchmarks/gpu_check.py without a GPU: its comparisons, its isolation, its report."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from sigcam.kernels.calls import DeviceInfo
from sigcam.kernels.errors import CudaUnavailableError
from sigcam.kernels.plan import plan
from sigcam.runtime.session import load

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def parts():
    """The modules; they find each other by their folder, as a script's do."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import gpu_backends
        import gpu_check
        import gpu_kernels
        import gpu_latency
        import gpu_report

        yield SimpleNamespace(
            check=gpu_check,
            kernels=gpu_kernels,
            backends=gpu_backends,
            latency=gpu_latency,
            report=gpu_report,
        )
    finally:
        sys.path.remove(str(BENCHMARKS))


# ---- kernels -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_cpu(parts, tmp_path_factory):
    """A runner with the kernel itself, compiled for the CPU."""
    from host_cuda import library, run_in_library

    lib = library(tmp_path_factory.mktemp("host") / "kernel.so")

    def runner(case, features, weights):
        planned = plan(replace(case.inputs, alignment=4), case.maps, processors=8)
        found = run_in_library(lib, planned, features, weights)
        return parts.kernels.Made(found.maps, found.valid, found.grids)

    return runner


def test_the_kernel_passes_the_comparison(parts, on_cpu, monkeypatch):
    few = parts.kernels.small_cases()
    assert len(few) > 20
    assert len(list(parts.kernels.cases())) > 100
    monkeypatch.setattr(parts.kernels, "cases", lambda: iter(few[::3]))
    figures = parts.kernels.check_values(on_cpu)
    assert figures["cases"] == len(few[::3])
    assert figures["failed"] == 0
    assert figures["worst"]["grids"] < 1e-6


def broken(kind):
    def change(made):
        if kind == "grids":
            made.grids[...] *= 1.001
        elif kind == "maps":
            made.maps[..., 0] = 255 if made.maps.dtype == np.uint8 else 0.5
        elif kind == "flags":
            made.valid[0, 0] ^= 1
        else:
            made.grids[0, 0, 0, 0] = np.nan
        return made

    return change


@pytest.mark.parametrize("kind", ["grids", "maps", "flags", "nan"])
def test_a_wrong_kernel_fails_the_comparison(parts, on_cpu, kind, monkeypatch):
    case = parts.kernels.small_cases()[0]
    change = broken(kind)
    monkeypatch.setattr(parts.kernels, "cases", lambda: iter([case, case]))
    with pytest.raises(parts.report.CheckFailed, match="2 of 2 cases: ") as caught:
        parts.kernels.check_values(lambda *a: change(on_cpu(*a)))
    assert caught.value.figures["failed"] == 2


def test_runs_that_differ_in_a_bit_are_found(parts):
    runs = []

    def runner(case, features, weights):
        runs.append(case)
        shape = (case.inputs.batch, case.inputs.classes)
        maps = np.zeros((*shape, 4, 4), np.float32)
        if len(runs) == 3:
            maps[-1, -1, -1, -1] = 1e-45
        return parts.kernels.Made(maps, np.ones(shape, np.uint8), np.zeros((*shape, 7, 7)))

    with pytest.raises(parts.report.CheckFailed, match="run 3 gave other bits"):
        parts.kernels.check_repeats(runner, repeats=4)


def test_a_sanitizer_that_is_not_there(parts, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(parts.report.CheckSkipped, match="compute-sanitizer"):
        parts.kernels.check_sanitizer("memcheck")


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
@pytest.mark.parametrize("code", [0, 9])
def test_what_a_sanitizer_says(parts, monkeypatch, tmp_path, code):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f'#!/bin/sh\necho "asked: $1 $2 $3 $4"\nexit {code}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    if code == 0:
        assert parts.kernels.check_sanitizer("racecheck") == {"tool": "racecheck"}
    else:
        said = "asked: --tool racecheck --error-exitcode 9"
        with pytest.raises(parts.report.CheckFailed, match=said):
            parts.kernels.check_sanitizer("racecheck")


# ---- backends ----------------------------------------------------------------------------


@pytest.fixture
def answers(make_artifact, parts):
    with load(make_artifact(profile="split"), "ort") as session:
        return [e for one in session.explain(parts.backends.pictures(), [0, 2, 3]) for e in one]


def test_equal_answers_are_within_the_limits(parts, answers):
    figures = parts.backends.differences(answers, answers)
    assert figures["grid_max"] == figures["map_max"] == figures["probability"] == 0
    assert parts.backends.judge("x", figures, parts.backends.EXACT) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"probability": 0.9}, "probability is off"),
        ({"grid": np.ones((7, 7), np.float32)}, "grid is off"),
        ({"grid": np.full((7, 7), np.nan, np.float32)}, "valid on one of them only"),
    ],
)
def test_other_answers_are_not(parts, answers, change, said):
    other = [replace(answers[0], **change), *answers[1:]]
    problems = parts.backends.judge("x", parts.backends.differences(other, answers),
                                    parts.backends.EXACT)  # fmt: skip
    assert said in "; ".join(problems)


def test_answers_for_other_classes_are_refused(parts, answers):
    with pytest.raises(parts.report.CheckFailed, match="class 2 came for class 0"):
        parts.backends.differences(answers[1:2], answers[:1])


def test_a_backend_that_is_not_installed_is_skipped(parts, make_artifact, monkeypatch):
    from sigcam.runtime.errors import BackendUnavailableError

    def missing(*given):
        raise BackendUnavailableError("no such provider")

    monkeypatch.setattr(parts.backends, "load", missing)
    with pytest.raises(parts.report.CheckSkipped, match="no such provider"):
        parts.backends.check_backend("ort-cuda", [make_artifact()])


def test_one_file_does_not_hide_the_others(parts, make_artifact, tmp_path, monkeypatch):
    good = make_artifact(profile="split")
    monkeypatch.setattr(parts.backends, "CLASSES", (0, 1, 3))
    monkeypatch.setitem(parts.backends.LIMITS, "ort", parts.backends.EXACT)
    assert parts.backends.check_backend("ort", [good])["differences"]["model"]["grid_max"] == 0
    with pytest.raises(parts.report.CheckFailed, match="none: ArtifactError") as caught:
        parts.backends.check_backend("ort", [tmp_path / "none.onnx", good])
    assert list(caught.value.figures["differences"]) == ["model"]
    with pytest.raises(parts.report.CheckFailed, match="export failed"):
        parts.backends.check_backend("ort", [])


class FakeClock:
    def start(self):
        self.begun = True

    def stop(self):
        assert self.begun
        return 2.5


def test_latencies(parts):
    calls = {"network": lambda: time.sleep(0.001), "maps": lambda: time.sleep(0.002)}
    found = parts.latency.measure(
        calls, {"maps": FakeClock()}, {"maps": "network"}, rounds=15, warmup=2
    )
    assert found["maps"]["device_ms"] == {"p50": 2.5, "p95": 2.5, "p99": 2.5}
    assert found["network"]["device_ms"] is None
    assert found["network"]["ratio"] is None
    assert 1.2 < found["maps"]["ratio"] < 3
    wall = found["maps"]["wall_ms"]
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


def test_how_checks_end(parts):
    def ends(error):
        def check():
            if error is not None:
                raise error
            return {"n": 1}

        return parts.check.outcome(check)

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


GPU = DeviceInfo(0, "NVIDIA Test", (8, 6), 40)


def made_report(parts, *statuses):
    report = parts.report.Report(parts.report.machine([GPU], (13, 0)), {"numpy": "2"})
    row = {"wall_ms": {"p50": 1.0, "p95": 2.0, "p99": 3.0}, "device_ms": None, "ratio": None}
    with_maps = {**row, "device_ms": row["wall_ms"], "ratio": 1.07}
    figures = {"latency": {"network": row, "maps": with_maps}}
    for status in statuses:
        report.results.append(parts.report.Result("latency a b", status, "", 1.0, figures))
    return report


def test_the_report(parts, tmp_path):
    report = made_report(parts, "passed", "skipped")
    assert report.exit_code == 0
    assert made_report(parts, "passed", "failed").exit_code == 1
    report.write(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["schema"] == "sigcam-gpu-check-1"
    assert data["machine"]["gpus"] == [
        {"name": "NVIDIA Test", "capability": "8.6", "multiprocessors": 40}
    ]
    assert data["machine"]["driver_cuda"] == "13.0"
    assert set(data["machine"]) == {"gpus", "driver_cuda", "system", "python", "cores"}
    assert [one["status"] for one in data["results"]] == ["passed", "skipped"]
    table = report.table()
    assert "+7.0%" in table
    assert "14 to 19%" in table
    assert report.summary() == "1 passed, 0 failed, 1 skipped"
    assert made_report(parts).table() == ""


def test_without_a_gpu_one_line_and_exit_code_3(parts, monkeypatch, tmp_path):
    def missing():
        raise CudaUnavailableError("the driver's library\nisn't there")

    monkeypatch.setattr(parts.check.driver, "available", missing)
    out = tmp_path / "out.json"
    done = CliRunner().invoke(parts.check.main, ["--out", str(out)])
    assert done.exit_code == 3
    assert done.output == "no NVIDIA GPU can be used: the driver's library isn't there\n"
    assert not out.exists()


@pytest.mark.parametrize("status", ["passed", "failed"])
def test_with_one_every_check_is_run_and_reported(parts, monkeypatch, tmp_path, status):
    ran = []

    def isolated(name, command, file, timeout):
        ran.append((name, command))
        return parts.report.Result(name, status if name == "values" else "passed", "", 0.1)

    model = tmp_path / "mine.onnx"
    model.write_bytes(b"x")
    monkeypatch.setattr(parts.check.driver, "available", lambda: None)
    monkeypatch.setattr(parts.check.driver, "devices", lambda: [GPU])
    monkeypatch.setattr(parts.check.driver, "driver_version", lambda: (13, 0))
    monkeypatch.setattr(parts.check, "run_isolated", isolated)
    out = tmp_path / "out.json"
    arguments = ["--out", str(out), "--network", "wsol-vgg16", "--model", str(model)]
    done = CliRunner().invoke(parts.check.main, arguments)
    assert done.exit_code == (1 if status == "failed" else 0), done.output
    names = [name for name, _ in ran]
    assert len(names) == len(set(names)) == 4 + 4 + 1 + 3 + 3 + 3
    assert {"compile", "sanitizer initcheck", "compare tensorrt wsol-vgg16", "model ort-cuda 0",
            "latency ort-tensorrt wsol-vgg16"} <= set(names)  # fmt: skip
    assert len(json.loads(out.read_text())["results"]) == len(names)
    assert str(tmp_path) not in out.read_text()
    for name, command in ran:
        assert command[2:4] == ["--one", name]
        assert callable(parts.check.find(name, tmp_path, [model], 10))


def test_a_check_in_its_own_process(parts, tmp_path):
    """The child's side for real: without a GPU, compiling past the driver fails and says so."""
    file = tmp_path / "result.json"
    script = str(BENCHMARKS / "gpu_check.py")
    command = [sys.executable, script, "--one", "values", "--folder", str(tmp_path),
               "--out", str(file)]  # fmt: skip
    result = parts.report.run_isolated("values", command, file, 120)
    if parts.check.no_gpu() is None:
        pytest.skip("there is a GPU")
    assert result.status == "failed"
    assert "CudaUnavailableError" in result.detail
