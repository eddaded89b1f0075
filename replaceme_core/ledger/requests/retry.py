"""A new job from the stored specification of a finished one."""

from sqlalchemy.orm import Session

from replaceme_core.errors import StaleTransition
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import submission
from replaceme_core.ledger.records import IdempotencyKey, Job
from replaceme_core.ledger.row_mapping import to_spec
from replaceme_core.ledger.states import TERMINAL
from replaceme_core.ledger.transitions import lock_job, update_job
from replaceme_core.request.fields import ending_of


def retry(
    session: Session,
    job_id: str,
    *,
    owner: str,
    new_id: str,
    idempotency_key: IdempotencyKey | None,
    default_worker_kind: WorkerKind | None,
    key_id: str | None,
) -> Job:
    """Add the job `new_id` and link both ways, or return the job that `idempotency_key` made before.

    An output that was named after the earlier job is named after the new one. So each result stays where its job says
    that it is; a repository that the request named is written again.

    Raises `JobNotFound`, `StaleTransition` while the job has not finished, and as `submission.add` does.
    """
    earlier = lock_job(session, job_id, owner=owner)
    if earlier.status not in TERMINAL:
        raise StaleTransition(f"job {job_id} is {earlier.status}; only a job that has finished can be retried")
    spec = to_spec(earlier)
    name, ending = spec.output.repo_id or "", ending_of(job_id)
    if name.endswith(ending):
        output = spec.output.model_copy(update={"repo_id": name.removesuffix(ending) + ending_of(new_id)})
        spec = spec.model_copy(update={"output": output})
    job = submission.add(
        session,
        spec=spec,
        owner=owner,
        job_id=new_id,
        idempotency_key=idempotency_key,
        default_worker_kind=default_worker_kind,
        key_id=key_id,
        retry_of=job_id,
    )
    if job.id == new_id:
        update_job(session, job_id, values={"retried_as": new_id})
    return job
