"""Memory that is freed serves again: counted in pages that the system had to give."""

import subprocess
import sys

import pytest

_FAULTS = """
import ctypes, resource, sys
from evo_cli.allocation import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for turn in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' C libraries have no such setting")
def test_a_large_block_is_used_again() -> None:
    faults = [
        int(subprocess.run([sys.executable, "-c", _FAULTS, how], capture_output=True, check=True, text=True).stdout)
        for how in ("given", "kept")
    ]
    assert faults[0] > 4 * faults[1]
