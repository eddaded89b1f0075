"""Machines with and without GPUs, for processes that ask torch: there need not be any where tests run."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]


def torch_that_sees(gpus: int, folder: Path) -> dict[str, str]:
    """The environment in which a module in torch's place says how many GPUs there are, and nothing else."""
    folder.mkdir(exist_ok=True)
    (folder / "torch.py").write_text(
        f"class cuda:\n    device_count = staticmethod(lambda: {gpus})\n\n\n"
        f"class accelerator:\n    is_available = staticmethod(lambda: {gpus > 0})\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", str(ROOT))])}
