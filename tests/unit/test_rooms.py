"""What must not be loaded where. import-linter reads imports; these tests look at a running interpreter."""

import subprocess
import sys

import pytest

MODEL_LIBRARIES = ("torch", "transformers", "datasets", "safetensors")


@pytest.mark.parametrize(
    "module",
    ["api.main", "worker.app", "worker.supervisor", "replaceme_core.jobs.repository", "replaceme_core.hub.open"],
)
def test_needs_no_model_library(module: str) -> None:
    program = f"import sys, {module}; print([name for name in {MODEL_LIBRARIES!r} if name in sys.modules])"
    fresh = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert fresh.returncode == 0, fresh.stderr
    assert fresh.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["api.main", "replaceme_core.spec", "replaceme_core.numerics.solve"])
def test_needs_no_worker(module: str) -> None:
    program = f"import sys, {module}; print([name for name in sys.modules if name.partition('.')[0] == 'worker'])"
    fresh = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert fresh.returncode == 0, fresh.stderr
    assert fresh.stdout.strip() == "[]"
