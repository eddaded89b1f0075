"""Gates: places where a runner stops until a test opens the gate, so that a fault happens exactly there.

A gate is a file `DATA/gates/JOB.PLACE`. The first runner of that job that reaches the place renames it to
`JOB.PLACE.held` and waits until that file is gone; later runners find no gate. Gates are files because a runner has
neither network nor settings.
"""

import time
from pathlib import Path

from replaceme_core.runner.messages import RunnerRequest

FOLDER = "gates"
HELD = ".held"
_POLL_SECONDS = 0.02


def set_gate(data: Path, job_id: str, place: str) -> None:
    """Make the first runner of the job stop at `place`. `data` is the data directory of the workers."""
    folder = data / FOLDER
    folder.mkdir(exist_ok=True)
    (folder / f"{job_id}.{place}").touch()


def is_held(data: Path, job_id: str, place: str) -> bool:
    return (data / FOLDER / f"{job_id}.{place}{HELD}").exists()


def open_gates(data: Path) -> None:
    """Let all runners continue."""
    for gate in (data / FOLDER).glob("*"):
        gate.unlink(missing_ok=True)


def pass_gate(request: RunnerRequest, place: str) -> None:
    """Wait at the gate at `place`, if one is set. Called by runners."""
    above = Path(request.output_directory).parents
    folder = next((one / FOLDER for one in above if (one / FOLDER).is_dir()), None)
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
