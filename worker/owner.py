"""What a job may use and where its result may go, which depends on its owner."""

from collections.abc import Callable

from replaceme_core.hub.port import Hub
from replaceme_core.ledger import reading
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import Owners, owner_hub
from replaceme_core.ledger.records import Job
from replaceme_core.request.admission import OutputRules
from replaceme_core.settings import Settings


def open_hub_of(job: Job, *, settings: Settings, database: Database, default: Callable[[], Hub]) -> Hub:
    """`default()`, or the Hub with the credential that the job names. Raises as `owner_hub` does."""
    return owner_hub(job.owner, job.spec.credential, settings=settings, database=database, default=default)


def hub_and_rules_of(
    job: Job, *, settings: Settings, database: Database, default: Callable[[], Hub]
) -> tuple[Hub, OutputRules]:
    """The same, and the rules for outputs of the job's owner."""

    def has_made(job_id: str, repo_id: str) -> bool:
        if job_id == job.retry_of:  # its own job, even if that has been deleted since
            return True
        with database.session(read_only=True) as session:
            return reading.has_made(session, job_id, repo_id, owner=job.owner)

    hub = open_hub_of(job, settings=settings, database=database, default=default)
    with database.session(read_only=True) as session:
        namespaces = Owners(session).output_namespaces(job.owner)
    return hub, settings.output_rules(is_own=has_made, namespaces=namespaces)
