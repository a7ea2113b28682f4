"""What one step frees serves the next; afterwards the process keeps memory as it did before."""

import os
import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import contextlib, resource, sys, torch
from anysat.train.memory import memory_kept
def faults(times=3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        held = [torch.ones(48 * 2**20, dtype=torch.uint8) for _ in range(2)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.ones(10)
with memory_kept():
    faults(8)  # aligned pieces find their places in a few rounds
    print(faults())
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="how glibc keeps memory")
@pytest.mark.parametrize("told", [{}, {"MALLOC_TRIM_THRESHOLD_": "65536"}])
def test_what_a_step_frees_is_kept_for_the_next_but_where_the_environment_tells(told):
    if tuple(map(int, platform.libc_ver()[1].split(".")[:2])) < (2, 35):
        pytest.skip("glibc before 2.35 refuses to keep large pieces")
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | told
    env["THP_MEM_ALLOC_ENABLE"] = "0"  # of large pages too few are asked for to be counted
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS], check=True, capture_output=True, text=True, env=env)
    inside, after = map(int, done.stdout.split())
    pages = 3 * 2 * 48 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert (inside < pages / 20) == (not told)
    assert after > pages / 20 or inside < after
