"""What this machine computes with, for processes that must not load torch: torch is asked in a process of its own.

Not the driver's tools, which number GPUs in another order and see some that torch cannot use.
"""

import subprocess
import sys
from collections.abc import Mapping

from replaceme_core.errors import InvalidInput

ANSWER_SECONDS = 120.0
_GPUS = "import torch; print(torch.cuda.device_count())"
_ACCELERATOR = "import torch; print(int(torch.accelerator.is_available()))"


def count_gpus(environ: Mapping[str, str]) -> int:
    """How many GPUs torch sees, in this environment. Raises `InvalidInput` where torch cannot be asked."""
    return _ask(_GPUS, environ)


def has_accelerator(environ: Mapping[str, str]) -> bool:
    """Whether jobs for a GPU can be done here: whatever torch calls an accelerator. Raises as `count_gpus` does."""
    return bool(_ask(_ACCELERATOR, environ))


def _ask(question: str, environ: Mapping[str, str]) -> int:
    command = (sys.executable, "-c", question)
    try:
        done = subprocess.run(
            command, env=dict(environ), capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True
        )
        return int(done.stdout.split()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise InvalidInput(
            f"torch cannot say which GPUs there are ({said[-1] if said else error}); it comes with replaceme[worker]",
            field="gpus",
        ) from error
