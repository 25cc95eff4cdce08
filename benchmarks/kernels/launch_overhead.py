"""Measures what enqueueing the map kernels costs the host, on a driver without a GPU.

    python -m benchmarks.kernels.launch_overhead [--rounds 200]

The driver is the tests' stand-in (tests/support/fake_cuda), so the figures are of Python and
cuda.bindings, and of a driver that only queues what it is given. Needs g++ and cuda-bindings.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INSIDE = "SIGCAM_LAUNCH_OVERHEAD_INSIDE"
CALLS = 20
"""Calls between two looks at the clock; what they queue is run in between, uncounted."""


def main(arguments: list[str] | None = None) -> int:
    """Builds the driver, and measures in a process that has it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200, help="measured rounds")
    rounds = parser.parse_args(arguments).rounds
    if INSIDE in os.environ:
        measure(rounds)
        return 0
    from tests.support.fake_cuda import environment, fake_driver

    with tempfile.TemporaryDirectory() as folder:
        fake_driver(Path(folder))
        code = Path(folder) / "code.cubin"
        code.write_bytes(b"\x7fELF")  # the stand-in runs the source itself, compiled for the CPU
        command = [sys.executable, "-m", "benchmarks.kernels.launch_overhead"]
        env = {**environment(Path(folder)), INSIDE: "1", "SIGCAM_KERNELS": str(code)}
        done = subprocess.run([*command, "--rounds", str(rounds)], cwd=ROOT, env=env, check=False)
        return done.returncode


def measure(rounds: int) -> None:
    """Prints the median and the best time of each way to enqueue the same two kernels."""
    from sigcam.kernels import driver
    from sigcam.kernels.arguments import whole
    from sigcam.kernels.clamp_combine import ClampCombine
    from sigcam.kernels.shapes import Heatmaps, Inputs

    # As small as can be, since the kernels do run, between the rounds.
    inputs, wanted = Inputs(1, 8, 2, 2, 1), Heatmaps(whole(4, 2), whole(4, 2))
    with driver.retain_primary_context(0):
        kernel, stream = ClampCombine(), driver.Stream()
        plan = kernel.plan(inputs, wanted)
        memory = driver.DeviceBuffer(plan.workspace.size + 4096)
        rest = memory.address + plan.workspace.size
        kernel.prepare_workspace(plan, memory.address, stream)
        given = {
            "features": rest, "weights": rest + 1024, "heatmaps": rest + 2048,
            "valid": rest + 3072, "workspace": memory.address, "stream": stream.handle,
        }  # fmt: skip
        ways: dict[str, Callable[[], object]] = {
            "plan and launch": lambda: kernel.launch(kernel.plan(inputs, wanted), **given),
            "launch": lambda: kernel.launch(plan, **given),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                begun = time.perf_counter()
                for _ in range(CALLS):
                    way()
                times[name].append((time.perf_counter() - begun) / CALLS * 1e6)
                stream.synchronize()
        memory.close()
    print("microseconds of the host for two kernels, median and best of", rounds, "rounds")
    for name, values in times.items():
        print(f"{name:16} {statistics.median(values):6.1f} {min(values):6.1f}")


if __name__ == "__main__":
    sys.exit(main())
