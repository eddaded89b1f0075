"""A result that has been computed and not yet published: `ROOT/checkpoints/JOB/result/`, until it is on the Hub.

An attempt whose worker is lost, or whose publication fails, leaves it to the next attempt at the job, which publishes
it and computes nothing. `result.json` is written last: without it there is no result.
"""

import logging
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.messages import Finished
from worker.workspace import RESULT, checkpoints_of, jobs_with_checkpoints

_RECORD = "result.json"
_MODEL = "model"

logger = logging.getLogger(__name__)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    spec: CompressionSpec
    finished: Finished


@dataclass(frozen=True, kw_only=True)
class KeptResult:
    """What is published: the files in `folder`, made by `spec`, with the final message of the runner."""

    folder: Path
    spec: CompressionSpec
    finished: Finished


def keep_result(root: Path, job_id: str, *, folder: Path, spec: CompressionSpec, finished: Finished) -> KeptResult:
    """Move the files in `folder`, which is under `root`, to where the next attempt finds them."""
    place = _place(root, job_id)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    folder.rename(place / _MODEL)
    draft = place / f".{_RECORD}"
    with draft.open("w", encoding="utf-8") as stream:
        stream.write(_Record(spec=spec, finished=finished).model_dump_json())
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(place / _RECORD)
    return KeptResult(folder=place / _MODEL, spec=spec, finished=finished)


def find_result(root: Path, job_id: str) -> KeptResult | None:
    """The result that an earlier attempt at this job has left. One that cannot be read is none."""
    place = _place(root, job_id)
    try:
        record = _Record.model_validate_json((place / _RECORD).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        logger.warning("job %s: the result that was kept cannot be used: %s", job_id, error)
        return None
    return KeptResult(folder=place / _MODEL, spec=record.spec, finished=record.finished)


def kept_results(root: Path) -> dict[str, float]:
    """How many seconds ago each of them was kept, by job."""
    found: dict[str, float] = {}
    for job_id in jobs_with_checkpoints(root):
        with suppress(FileNotFoundError):  # the job has none, or it has just been removed
            found[job_id] = time.time() - _place(root, job_id).stat().st_mtime
    return found


def _place(root: Path, job_id: str) -> Path:
    return checkpoints_of(root, job_id) / RESULT
