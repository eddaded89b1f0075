"""The pipeline on a device that is not the CPU, on a machine that has no other."""

import json
import subprocess
import sys

from benchmarks.harness.checkout import ROOT

OWN_TEXT = {"dataset": "file:text.txt", "samples": 8, "max_length": 16, "self_generated": 0.25}
JOBS = [
    {"method": {"name": "auto"}, "calibration": OWN_TEXT, "evaluation": {"samples": 2}},
    {"method": {"name": "least_squares"}, "drop": [2], "compute": {"loading": "blockwise"}},
    {"method": {"name": "cosine"}, "drop": [2]},
    {"method": {"name": "merge"}},
]
"""Choice, maps and refits, own text, evaluation and measurement of speed; lazy loading; changes that are tried."""


def test_a_second_device_makes_what_the_cpu_makes() -> None:
    """No operation is on tensors of both devices, and no value takes another way from there than over the CPU."""
    command = [sys.executable, "-m", "tests.fixtures.models.second_device", json.dumps(JOBS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(JOBS)
    for job, one in zip(JOBS, found, strict=True):
        on_cpu, there = one["kept"]
        assert there == on_cpu, job
        assert one["difference"] < 0.01, job  # sums over batches of another size, of few tokens
