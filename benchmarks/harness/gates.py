"""Places where a runner stops until a test lets it go on, so that a fault comes exactly there.

A gate is a file `DATA/gates/JOB.PLACE`. The first runner of that job that comes by renames it to `JOB.PLACE.held` and
waits until that is gone; every later one finds no gate. Files, because a runner has neither network nor settings.
"""

import time
from pathlib import Path

from replaceme_core.runner.messages import RunnerRequest, ShardRequest

FOLDER = "gates"
HELD = ".held"
_POLL_SECONDS = 0.02


def set_gate(data: Path, job_id: str, place: str) -> None:
    """Hold the first runner of the job at `place`. `data` is the data directory of the workers."""
    folder = data / FOLDER
    folder.mkdir(exist_ok=True)
    (folder / f"{job_id}.{place}").touch()


def is_held(data: Path, job_id: str, place: str) -> bool:
    return (data / FOLDER / f"{job_id}.{place}{HELD}").exists()


def open_gate(data: Path, job_id: str, place: str) -> None:
    """Let the one go on that is held there."""
    (data / FOLDER / f"{job_id}.{place}{HELD}").unlink()


def open_gates(data: Path) -> None:
    """Let everybody go on."""
    for gate in (data / FOLDER).glob("*"):
        gate.unlink(missing_ok=True)


def pass_gate(request: RunnerRequest | ShardRequest, place: str) -> None:
    """Called by a runner: returns at once where no gate is set."""
    within = Path(request.shard_directory if isinstance(request, ShardRequest) else request.output_directory)
    folder = next((above / FOLDER for above in within.parents if (above / FOLDER).is_dir()), None)
    if folder is None:
        return
    gate = folder / f"{request.job_id}.{place}"
    held = gate.with_name(gate.name + HELD)
    try:
        gate.rename(held)
    except FileNotFoundError:
        return
    while held.exists():
        time.sleep(_POLL_SECONDS)
