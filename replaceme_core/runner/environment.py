"""The whole environment of a runner: variables for hardware, language and libraries by their exact names."""

import os
import site
from collections.abc import Mapping
from pathlib import Path

_PASSED = frozenset(
    {
        "CUBLAS_WORKSPACE_CONFIG",
        "CUDA_CACHE_DISABLE",
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "CUDA_DEVICE_ORDER",
        "CUDA_HOME",
        "CUDA_LAUNCH_BLOCKING",
        "CUDA_MODULE_LOADING",
        "CUDA_PATH",
        "CUDA_VISIBLE_DEVICES",
        "GOMP_CPU_AFFINITY",
        "GOMP_SPINCOUNT",
        "HIP_VISIBLE_DEVICES",
        "KMP_AFFINITY",
        "KMP_BLOCKTIME",
        "KMP_HW_SUBSET",
        "LANG",
        "LANGUAGE",
        "LC_ALL",
        "LC_CTYPE",
        "LC_MESSAGES",
        "LC_NUMERIC",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "MALLOC_ARENA_MAX",
        "MALLOC_CONF",
        "MALLOC_MMAP_THRESHOLD_",
        "MALLOC_TRIM_THRESHOLD_",
        "MKL_CBWR",
        "MKL_DYNAMIC",
        "MKL_ENABLE_INSTRUCTIONS",
        "MKL_NUM_THREADS",
        "MKL_THREADING_LAYER",
        "NVIDIA_DRIVER_CAPABILITIES",
        "NVIDIA_TF32_OVERRIDE",
        "NVIDIA_VISIBLE_DEVICES",
        "OMP_DYNAMIC",
        "OMP_MAX_ACTIVE_LEVELS",
        "OMP_NUM_THREADS",
        "OMP_PLACES",
        "OMP_PROC_BIND",
        "OMP_SCHEDULE",
        "OMP_STACKSIZE",
        "OMP_THREAD_LIMIT",
        "OMP_WAIT_POLICY",
        "OPENBLAS_CORETYPE",
        "OPENBLAS_NUM_THREADS",
        "PATH",
        "PYTHONPATH",
        "PYTHONSAFEPATH",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_ENABLE_MPS_FALLBACK",
        "PYTORCH_HIP_ALLOC_CONF",
        "PYTORCH_MPS_HIGH_WATERMARK_RATIO",
        "PYTORCH_MPS_LOW_WATERMARK_RATIO",
        "PYTORCH_NO_CUDA_MEMORY_CACHING",
        "PYTORCH_NVML_BASED_CUDA_CHECK",
        "ROCR_VISIBLE_DEVICES",
        "TZ",
        "VIRTUAL_ENV",
    }
)
"""No prefixes: an operator's CUDA_REGISTRY_PASSWORD or LC_TOKEN is nobody else's business."""
PATH_LISTS = frozenset({"LD_LIBRARY_PATH", "PATH", "PYTHONPATH"})


def runner_environment(scratch: Path, *, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a runner, and nothing else.

    Caches, temporary files and the home directory lie under `scratch`, which is created. The Hugging Face libraries are
    set to work offline. `base` is the environment to choose from, by default that of this process.
    """
    base = os.environ if base is None else base
    scratch = scratch.absolute()
    places = {
        "HOME": scratch / "home",
        "TMPDIR": scratch / "tmp",
        "HF_HOME": scratch / "huggingface",
    }
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    return {
        **{
            name: _with_absolute_entries(value) if name in PATH_LISTS else value
            for name, value in base.items()
            if name in _PASSED
        },
        **{name: str(place) for name, place in places.items()},
        "PYTHONUSERBASE": site.getuserbase(),  # packages installed for the user lie under the home directory
        "PYTHONFAULTHANDLER": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _with_absolute_entries(paths: str) -> str:
    """A list such as PATH, whose relative and empty entries are taken from this process's working directory."""
    return os.pathsep.join(str(Path(entry).absolute()) for entry in paths.split(os.pathsep)) if paths else paths
