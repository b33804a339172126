from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from collector.heap import trim_heap

_BODY = """
import numpy as np
from pathlib import Path
from collector.heap import bound_heap
assert bound_heap()
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
kept = []
before = resident()
for _ in range(40):
    large = [np.ones(3_000_000, np.uint8) for _ in range(8)]
    kept.append(np.ones(4000, np.uint8))
    del large
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_large_arrays_that_are_gone_take_no_memory() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", _BODY], capture_output=True, text=True, check=True
    )
    assert int(answer.stdout) < 4_000_000


def test_free_pages_are_given_back() -> None:
    kept = [bytes(2_000) for _ in range(100_000)]
    last = bytes(2_000)  # keeps the top of the heap from shrinking by itself
    del kept
    assert trim_heap()
    assert len(last) == 2_000
