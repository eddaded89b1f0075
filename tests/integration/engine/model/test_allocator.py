"""Freed memory is used again, in a process of its own: what is set holds for all of it."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from replaceme_core.engine.model.allocator import (release_memory, reuse_freed_memory)
from replaceme_core.request.defaults import PART_BYTES
from replaceme_core.engine.results.stage_clock import resident_bytes
if {reuse}:
    assert reuse_freed_memory() == {expected}
def faults(size):
    torch.ones(size // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        first, second = torch.ones(size // 4), torch.ones(size // 4)
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(PART_BYTES * 3))
held = [torch.ones(PART_BYTES // 8) for _ in range(8)]
full = resident_bytes()
del held
release_memory()
assert resident_bytes() < full - 6 * PART_BYTES // 2
"""


def faults(*, reuse: bool, expected: bool = True, **variables: str) -> int:
    script = SCRIPT.format(reuse=reuse, expected=expected)
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PATH": "/usr/bin:/bin", **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_pages_are_not_made_anew_and_go_back_when_told() -> None:
    """40 tensors of 96 MiB are 983,040 pages of 4 KiB; above 32 MiB glibc would never reuse one by itself."""
    without, with_reuse = faults(reuse=False), faults(reuse=True)
    assert with_reuse < without / 10


def test_what_the_variables_say_stays() -> None:
    faults(reuse=True, expected=False, MALLOC_TRIM_THRESHOLD_="131072")
