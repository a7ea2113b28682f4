"""Work in parts: the memory of one part is that of the next."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

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


COUNT_HUGE = """
import sys, torch
if sys.argv[1] == "after a tensor":
    torch.ones(1)
import anysat
held = torch.ones(2**24)
lines = open("/proc/self/smaps_rollup").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("AnonHugePages")))
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="how Linux keeps memory")
@pytest.mark.parametrize(
    ("way", "told", "is_huge"), [("first", None, True), ("first", "0", False), ("after a tensor", None, False)]
)
def test_large_tensors_lie_in_large_pages_unless_the_environment_says_no(way, told, is_huge):
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not pages.exists() or "[madvise]" not in pages.read_text():
        pytest.skip("this system gives large pages to nobody, or to everybody")
    env = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    env |= {} if told is None else {"THP_MEM_ALLOC_ENABLE": told}
    found = subprocess.run([sys.executable, "-c", COUNT_HUGE, way], check=True, capture_output=True, env=env).stdout
    assert (int(found) >= 2**14) == is_huge


@pytest.mark.parametrize(
    ("words", "told", "expected"),
    [("embed", None, "1"), ("pretrain", None, "0"), ("finetune", None, "0"), ("pretrain", "1", "1"), ("", None, "1")],
)
def test_commands_that_learn_ask_for_no_large_pages_unless_the_environment_says_so(words, told, expected):
    code = (
        "import os, sys, anysat.cli as cli\n"
        "sys.argv = ['anysat', *sys.argv[1:]]\n"
        "cli.main = lambda: print(os.environ['THP_MEM_ALLOC_ENABLE'], 'torch' in sys.modules)\n"
        "cli.run()\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    env |= {} if told is None else {"THP_MEM_ALLOC_ENABLE": told}
    found = subprocess.run(
        [sys.executable, "-c", code, *words.split()], check=True, capture_output=True, env=env, text=True
    )
    assert found.stdout.split() == [expected, "False"]
