"""Memory that was freed goes back to the system, whatever was freed before."""

import platform
import subprocess
import sys

import pytest

from sigcam.serve.allocator import give_back_freed_memory

# A block of 24 MB that is freed raises glibc's threshold; the next ones then stay in its heap,
# under a small one that is still in use.
SCRIPT = """
import sys
import numpy as np
from sigcam.serve.allocator import give_back_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "fixed":
    assert give_back_freed_memory()
first = np.ones(24 << 20, np.uint8)
del first
before = resident()
blocks = [np.ones(20 << 20, np.uint8) for _ in range(5)]
small = [np.ones(1 << 18, np.uint8) for _ in range(4)]
del blocks
print((resident() - before) >> 20)
"""


def grown(kind, **env):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind], env=env, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library isn't glibc")
def test_large_blocks_go_back():
    assert grown("fixed") < 8
    assert grown("default") > 50, "the C library gives blocks back by itself: nothing is shown"


def test_what_the_environment_says_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    assert not give_back_freed_memory()
