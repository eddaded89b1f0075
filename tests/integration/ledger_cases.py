"""How the tests of the ledger bring a job into a state: each call is a transaction of its own, as in the product."""

from collections.abc import Mapping

from replaceme_core.jobs.repository import Claim, Job, JobEvent, Jobs, Once
from replaceme_core.jobs.session import Database
from replaceme_core.jobs.states import JobStatus
from replaceme_core.spec import CompressionSpec
from tests.builders import a_spec


class Ledger:
    """Short calls on a database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, *, owner: str = "someone", labels: Mapping[str, str] | None = None) -> str:
        return self.add_spec(a_spec(labels=dict(labels or {})), owner=owner)

    def add_spec(self, spec: CompressionSpec, *, owner: str = "someone", once: Once | None = None) -> str:
        with self.database.session() as session:
            return Jobs(session).add(spec=spec, owner=owner, once=once).id

    def get(self, job_id: str) -> Job:
        with self.database.session(read_only=True) as session:
            return Jobs(session).get(job_id)

    def status(self, job_id: str) -> JobStatus:
        return self.get(job_id).status

    def history(self, job_id: str) -> list[str]:
        return [event.type.value for event in self.events(job_id)]

    def events(self, job_id: str) -> tuple[JobEvent, ...]:
        with self.database.session(read_only=True) as session:
            return Jobs(session).events(job_id, limit=1000).items

    def claim(self, job_id: str, *, lease_seconds: float = 60) -> Claim:
        with self.database.session() as session:
            return Jobs(session).claim(job_id, worker="w", lease_seconds=lease_seconds)

    def succeed(self, claim: Claim) -> None:
        with self.database.session() as session:
            succeed(Jobs(session), claim)

    def fail(self, claim: Claim) -> None:
        with self.database.session() as session:
            Jobs(session).fail(claim, code="out_of_memory", message="too big")

    def finish_cancelled(self, claim: Claim) -> None:
        with self.database.session() as session:
            Jobs(session).finish_cancelled(claim)

    def release(self, claim: Claim) -> None:
        with self.database.session() as session:
            Jobs(session).release(claim, reason="drain")

    def cancel(self, job_id: str) -> Job:
        with self.database.session() as session:
            return Jobs(session).request_cancel(job_id)

    def take_back(self, *, max_attempts: int = 3, limit: int = 10) -> list[str]:
        with self.database.session() as session:
            return Jobs(session).take_back_lapsed(max_attempts=max_attempts, limit=limit)

    def job_in(self, status: JobStatus) -> tuple[str, Claim]:
        """A job in that status, and the claim that brought it there. For a queued one it was given back."""
        job_id = self.add()
        claim = self.claim(job_id)
        match status:
            case JobStatus.QUEUED:
                self.release(claim)
            case JobStatus.SUCCEEDED:
                self.succeed(claim)
            case JobStatus.FAILED:
                self.fail(claim)
            case JobStatus.CANCELLED:
                self.finish_cancelled(claim)
            case JobStatus.RUNNING:
                pass
        return job_id, claim


def succeed(jobs: Jobs, claim: Claim) -> None:
    jobs.succeed(
        claim,
        repo_id="org/model-small",
        revision="b" * 40,
        removed_blocks=[12, 13],
        kept_blocks=[0, 1, 2],
        report={"zeta": 20.5, "alpha": [1, 2]},
    )
