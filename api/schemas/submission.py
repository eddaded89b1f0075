"""The body of `POST /jobs`, and its response."""

from pydantic import Field

from api.schemas.jobs import JobBody
from api.schemas.webhooks import JobWebhookRequest, WebhookWithSecretBody
from replaceme_core.spec import CompressionRequest


class JobRequest(CompressionRequest):
    """A job, and a webhook for it."""

    webhook: JobWebhookRequest | None = None
    validate_only: bool = Field(default=False, description="Answer with the plan, and queue nothing.")


class SubmittedJobBody(JobBody):
    """A job with the webhook that was asked for with it. Without one the response is the job alone."""

    webhook: WebhookWithSecretBody | None = None
