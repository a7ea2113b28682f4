"""Work in parts: the memory of one part is that of the next."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

COUNT_MAPPED = """
import ctypes, sys, torch
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena free small mapped bytes a b c d e".split()]
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
if sys.argv[1] == "ours":
    import anysat.model.chunks
before = mallinfo().mapped
held = torch.empty(20 * 2**20, dtype=torch.uint8)
print(mallinfo().mapped - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="how glibc keeps memory")
def test_what_a_part_frees_is_kept_for_the_next():
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("glibc before 2.33 does not tell")
    # dask tells glibc what to keep, for all processes begun after a cluster was
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    mapped = [
        int(subprocess.run([sys.executable, "-c", COUNT_MAPPED, way], check=True, capture_output=True, env=env).stdout)
        for way in ("ours", "torch alone")
    ]
    assert mapped == [0, 1]
