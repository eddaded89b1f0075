"""Modules that must not be loaded. import-linter reads imports; these tests inspect a running interpreter."""

import subprocess
import sys

import pytest

MODEL_LIBRARIES = ("torch", "transformers", "datasets", "safetensors")


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("api.main", (*MODEL_LIBRARIES, "worker")),
        ("worker.app", MODEL_LIBRARIES),
        ("worker.supervisor", MODEL_LIBRARIES),
        ("replaceme_core.jobs.repository", MODEL_LIBRARIES),
        ("replaceme_core.hub.open", MODEL_LIBRARIES),
        ("replaceme_core.spec", ("worker",)),
        ("replaceme_core.numerics.solve", ("worker",)),
    ],
)
def test_does_not_load(module: str, unwanted: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print([name for name in sys.modules if name.partition('.')[0] in {unwanted!r}])"
    fresh = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert fresh.returncode == 0, fresh.stderr
    assert fresh.stdout.strip() == "[]"
