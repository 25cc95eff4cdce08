"""The processors that a process may use, read from made-up files of /proc and /sys."""

import os
import subprocess
import sys

import pytest

from sigcam.core import cpus
from sigcam.core.cpus import cpu_quota, thread_limit, usable_cpus, wait_asleep

V2 = "31 23 0:28 {base} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "32 31 0:29 {base} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:10 - cgroup cgroup "
    "rw,cpu,cpuacct\n"
    "33 31 0:30 {base} /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
)


@pytest.fixture
def machine(tmp_path):
    """machine(cgroup, mountinfo) -> a root folder with these in its /proc/self."""

    def make(cgroup, mountinfo):
        (tmp_path / "proc" / "self").mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
        (tmp_path / "proc/self/mountinfo").write_text(mountinfo)
        return tmp_path

    return make


def write(root, files):
    for place, text in files.items():
        path = root / "sys/fs/cgroup" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("group", "base", "files", "wanted"),
    [
        ("/", "/", {"cpu.max": "50000 100000\n"}, 0.5),
        ("/", "/", {"cpu.max": "max 100000\n"}, None),
        ("/", "/", {}, None),
        ("/a/b", "/", {"a/b/cpu.max": "150000 100000"}, 1.5),
        # The smallest of all groups above counts, wherever it is.
        ("/a/b", "/", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "20000 10000"}, 2),
        ("/a/b/c", "/", {"a/b/c/cpu.max": "max 100000", "cpu.max": "100000 50000"}, 2),
        ("/a", "/", {"a/cpu.max": "25000 100000", "cpu.max": "max 100000"}, 0.25),
        ("/a", "/", {"other/cpu.max": "10000 100000"}, None),
        # A container that sees its own group only, under its name outside.
        ("/docker/12ab", "/docker/12ab", {"cpu.max": "300000 100000"}, 3),
        ("/docker/12ab/x", "/docker/12ab", {"x/cpu.max": "100000 100000"}, 1),
        ("/../other", "/", {"cpu.max": "200000 100000"}, 2),
        ("/ab", "/a", {"cpu.max": "200000 100000", "b/cpu.max": "1000 100000"}, 2),
        ("/", "/", {"cpu.max": "rubbish"}, None),
        ("/", "/", {"cpu.max": "0 0"}, None),
    ],
)
def test_quotas_of_version_2(machine, group, base, files, wanted):
    root = machine(f"0::{group}\n", V2.format(base=base))
    write(root, files)
    assert cpu_quota(root) == wanted


@pytest.mark.parametrize(
    ("quotas", "wanted"),
    [
        ({"a/b": (50000, 100000)}, 0.5),
        ({"a/b": (-1, 100000)}, None),
        ({"a/b": (-1, 100000), "a": (250000, 100000)}, 2.5),
        ({"a/b": (800000, 100000), "a": (-1, 100000), "": (100000, 50000)}, 2),
        ({"elsewhere": (1000, 100000)}, None),
    ],
)
def test_quotas_of_version_1(machine, quotas, wanted):
    root = machine("9:cpuset:/\n4:cpu,cpuacct:/a/b\n0::/a/b\n", V1.format(base="/"))
    for place, (quota, period) in quotas.items():
        write(root, {f"cpu,cpuacct/{place}/cpu.cfs_quota_us": f"{quota}\n"})
        write(root, {f"cpu,cpuacct/{place}/cpu.cfs_period_us": f"{period}\n"})
    assert cpu_quota(root) == wanted


def test_both_versions_at_once(machine):
    unified = V2.format(base="/").replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")
    root = machine("4:cpu,cpuacct:/a\n0::/b\n", V1.format(base="/") + unified)
    write(root, {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000"})
    write(root, {"cpu,cpuacct/a/cpu.cfs_period_us": "100000"})
    assert cpu_quota(root) == 3
    write(root, {"unified/b/cpu.max": "100000 100000"})
    assert cpu_quota(root) == 1


def test_a_place_with_a_space(machine):
    root = machine("0::/\n", V2.format(base="/").replace("/sys/fs/cgroup ", r"/sys/fs/cg\040roup "))
    write(root, {"../cg roup/cpu.max": "200000 100000"})
    assert cpu_quota(root) == 2


def test_no_files_at_all(tmp_path):
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "allowed", "omp", "cores", "wanted"),
    [
        (None, 8, None, 8, None),
        (0.5, 8, None, 8, 1),
        (1.9, 8, None, 8, 1),
        (2.0, 8, None, 8, 2),
        (2.5, 1, None, 8, 1),
        (16, 8, None, 8, None),
        (None, 3, None, 8, 3),
        (None, 8, "2", 8, 2),
        (None, 8, "16", 8, 8),
        (1, 8, "4", 8, 1),
        (None, 8, "3,2", 8, 3),
        (None, 8, "", 8, None),
        (None, 8, "many", 8, None),
        (None, 8, "0", 8, None),
    ],
)
def test_the_smallest_limit_counts(monkeypatch, quota, allowed, omp, cores, wanted):
    monkeypatch.setattr(cpus, "cpu_quota", lambda root: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(allowed)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if omp is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    assert thread_limit() == wanted
    assert usable_cpus() == max(1, min(int(quota or cores), allowed))


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2, reason="needs two cores"
)
def test_as_under_taskset():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from sigcam.core.cpus import thread_limit, usable_cpus\n"
        "from sigcam.runtime.backends.base import BackendOptions\n"
        "print(thread_limit(), usable_cpus(), BackendOptions().allowed_threads)"
    )
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120,
        check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["1", "1", "1"]


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({}, "passive"),
        ({"OMP_WAIT_POLICY": "active"}, "active"),
        ({"GOMP_SPINCOUNT": "1000"}, None),
    ],
)
def test_threads_wait_asleep_unless_the_user_says_how(monkeypatch, said, wanted):
    environment = {k: v for k, v in os.environ.items() if "SPINCOUNT" not in k and "WAIT" not in k}
    monkeypatch.setattr(os, "environ", {**environment, **said})
    wait_asleep()
    assert os.environ.get("OMP_WAIT_POLICY") == wanted


def test_commands_say_so_before_pytorch_is_there():
    """OpenMP looks at the variable when its library is loaded."""
    code = (
        "import os, sys\n"
        "import sigcam.cli.export, sigcam.cli.inspect, sigcam.cli.sanity\n"
        "assert 'torch' not in sys.modules\n"
        "def noted():\n"
        "    print('torch' in sys.modules)\n"
        "    raise SystemExit\n"
        "command = sys.modules[f'sigcam.cli.{sys.argv[1]}']\n"
        "command.wait_asleep = noted\n"
        "command.command(sys.argv[2:])\n"
    )
    given = ["--arch", "no.onnx", "--method", "cam", "--branch", "softmax", "--out", "o.onnx"]
    sanity = [*given[:-2], "--data", "."]
    for arguments in (["inspect", "no.onnx"], ["export", *given], ["sanity", *sanity]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert done.stdout.split() == ["False"], done.stderr
