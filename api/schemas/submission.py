"""The body of `POST /jobs`, and its response."""

from typing import Self

from pydantic import Field

from api.schemas.jobs import JobBody
from api.schemas.webhooks import JobWebhookRequest, WebhookWithSecretBody
from replaceme_core.ledger.records import Job
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.webhooks import Webhook
from replaceme_core.request.spec import CompressionRequest


class JobRequest(CompressionRequest):
    """A job, and a webhook for it."""

    webhook: JobWebhookRequest | None = None
    validate_only: bool = Field(default=False, description="Answer with the plan, and queue nothing.")


class SubmittedJobBody(JobBody):
    """The answer to a submission. `notice`: the request is a repeated one, and its job has not succeeded.

    `webhook` is the one that was asked for; without one the field is absent.
    """

    notice: str | None
    webhook: WebhookWithSecretBody | None = None

    @classmethod
    def after(cls, job: Job, *, repeated: bool, webhook: Webhook | None, secret: str | None, root: str) -> Self:
        notice = None
        if repeated and job.status in (JobStatus.FAILED, JobStatus.CANCELLED):
            notice = (
                f"this Idempotency-Key made this job before, and it is {job.status}; to run it again, "
                f"POST {root}/jobs/{job.id}/retry, or send the request with a new key"
            )
        shown = None if webhook is None else WebhookWithSecretBody.of(webhook, root=root, secret=secret)
        return cls.of(job, root=root, notice=notice, webhook=shown)

    def as_json(self) -> str:
        """The JSON that is sent."""
        return self.model_dump_json(exclude={"webhook"} if self.webhook is None else None)
