"""The GPUs of this machine, for processes that must not import torch: another process does.

The tools of the driver are not used: they number GPUs in another order and list some that torch cannot use.
"""

import subprocess
import sys
from collections.abc import Mapping

from replaceme_core.errors import InvalidInput

TIMEOUT_SECONDS = 120.0
_GPUS = "import torch; print(torch.cuda.device_count())"
_ACCELERATOR = "import torch; print(int(torch.accelerator.is_available()))"


def count_gpus(environ: Mapping[str, str]) -> int:
    """How many GPUs torch sees in this environment. Raises `InvalidInput` if torch cannot be run."""
    return _run_torch(_GPUS, environ)


def has_accelerator(environ: Mapping[str, str]) -> bool:
    """Whether torch sees an accelerator, so that jobs for a GPU can run here. Raises as `count_gpus` does."""
    return bool(_run_torch(_ACCELERATOR, environ))


def _run_torch(code: str, environ: Mapping[str, str]) -> int:
    command = (sys.executable, "-c", code)
    try:
        done = subprocess.run(
            command, env=dict(environ), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True
        )
        return int(done.stdout.split()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise InvalidInput(
            f"torch cannot list the GPUs ({lines[-1] if lines else error}); it is installed with replaceme[worker]",
            field="gpus",
        ) from error
