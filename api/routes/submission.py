"""Submission of a job: first everything that is slow and needs no transaction, then one short transaction.

Each of the two steps runs in a thread once. More thread switches would slow down every client that polls, since all
threads of the process share one interpreter lock.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

import structlog
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from api.http import deadline
from api.http.callers import Caller, caller_of, limit_of
from api.queue import Queue
from api.request_bodies import JobRequest, JobWebhookRequest
from api.routes.delivery import check_url
from api.routes.planning import Planning, Slots, check_worker_kind
from replaceme_core.errors import MissingScope, QueueUnreachable, TooManyJobs
from replaceme_core.ledger import changes, reading, webhooks
from replaceme_core.ledger.database import Database, LedgerSession
from replaceme_core.ledger.keys import OF_WEBHOOKS, Owners
from replaceme_core.ledger.records import IdempotencyKey, Job
from replaceme_core.ledger.webhooks import NewWebhook, Webhook
from replaceme_core.plan.plan import Plan
from replaceme_core.request.admission import admit_model, find_model, resolve_request
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.secrets_box import SecretsBox
from replaceme_core.settings import Settings
from replaceme_core.webhooks import new_secret
from replaceme_core.wording import counted

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job, and whether the same request had created it before.

    `webhook` is the one that was asked for with it; `secret` is that of a new webhook, else `None`.
    """

    job: Job
    repeated: bool
    webhook: Webhook | None = None
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Submitter:
    """Submits jobs. `write_slots` limits how many transactions write at the same time."""

    settings: Settings
    database: Database
    queue: Queue
    open_secrets_box: Callable[[], SecretsBox]
    planning: Planning
    write_slots: Slots

    async def submit(self, request: JobRequest, *, key: str | None, scope: Scope) -> tuple[Submitted, ...]:
        """The new jobs, one unless it is a sweep, committed together and enqueued.

        Or those that the same request with the same `key` created before: its `Idempotency-Key`. `scope` is its ASGI
        scope, which holds its deadline and its caller. Raises as `resolve_request`, `owner_hub`, `Planner.check` and
        `changes.add` do, `TooManyRequests`, `DatabaseUnreachable`, and `Unavailable` after the deadline.
        """
        keys = self._keys(key, request)
        ids = [str(uuid4()) for _ in keys]
        caller = caller_of(scope)
        async with self.planning.slots.hold(caller.owner):
            prepared = await run_in_threadpool(self._prepare, request, ids=ids, keys=keys, caller=caller)
        if isinstance(prepared, tuple):
            return prepared
        async with self.write_slots.hold(caller.owner):
            return await run_in_threadpool(
                self._store, prepared, webhook=request.webhook, ids=ids, keys=keys, scope=scope
            )

    async def retry(self, job_id: str, *, key: str | None, scope: Scope) -> Submitted:
        """A new job with the stored specification of a finished one; or what the same request created before.

        Raises as `changes.retry` does, `InvalidInput`, `LimitExceeded`, `TooManyJobs`, `DatabaseUnreachable`, and
        `Unavailable` after the deadline. The new job has the webhook of the earlier one, with its secret.
        """
        idempotency_key = self._key(key, hashlib.sha256(f"retry {job_id}".encode()).hexdigest())
        new_id = str(uuid4())
        await run_in_threadpool(self._check_retry, job_id, idempotency_key, caller=caller_of(scope))
        async with self.write_slots.hold(caller_of(scope).owner):
            return await run_in_threadpool(
                self._store_retry, job_id, new_id=new_id, idempotency_key=idempotency_key, scope=scope
            )

    async def validate(self, request: JobRequest, *, caller: Caller) -> tuple[Plan, ...]:
        """The plan of each job of a request that would be accepted, queueing nothing. Raises what `submit` would."""
        async with self.planning.slots.hold(caller.owner):
            return await run_in_threadpool(self._validate, request, caller=caller)

    def _validate(self, request: JobRequest, *, caller: Caller) -> tuple[Plan, ...]:
        webhook, requests = request.webhook, request.each()
        self.check_webhook(webhook, caller)
        with self.database.session(read_only=True) as session:
            excess = self._excess(session, caller, adds=len(requests))
            if excess is not None:
                raise excess
            if webhook is not None:
                webhooks.check_signer(session, webhook.signed_by, owner=caller.owner)
        if webhook is not None:
            self.open_secrets_box().seal(new_secret(), field="webhook")
        return tuple(self.planning.validate(one, caller=caller) for one in requests)

    def _keys(self, key: str | None, request: JobRequest) -> list[IdempotencyKey | None]:
        """One per job: of a sweep, those after the first are made of it."""
        count = len(request.ratio) if isinstance(request.ratio, tuple) else 1
        texts = [key, *(key and hashlib.sha256(f"{key} {number}".encode()).hexdigest() for number in range(1, count))]
        return [self._key(text, request.fingerprint()) for text in texts]

    def _key(self, key: str | None, fingerprint: str) -> IdempotencyKey | None:
        if key is None:
            return None
        keep_seconds = self.settings.idempotency_seconds
        return IdempotencyKey(key=key, fingerprint=fingerprint, keep_seconds=keep_seconds)

    def _check_retry(self, job_id: str, key: IdempotencyKey | None, *, caller: Caller) -> None:
        """Raises `JobNotFound`, and `LimitExceeded` for a job that this caller could not submit: another may have."""
        with self.database.session(read_only=True) as session:
            if self._find_or_count(session, [key], caller):
                return
            spec = reading.get(session, job_id, owner=caller.owner).spec
        limits = self.planning.limits_of(caller)
        limits.check_tokens(spec)
        if limits.model_bytes is not None:
            limits.check_model(find_model(spec.model, self.planning.hub_of(spec, caller)))

    def _store_retry(
        self, job_id: str, *, new_id: str, idempotency_key: IdempotencyKey | None, scope: Scope
    ) -> Submitted:
        caller = caller_of(scope)
        owner = caller.owner
        with self.database.session() as session:
            earlier = self._find_or_count(session, [idempotency_key], caller, exact=True)
            if earlier:
                return earlier[0]
            # before the job, whose first event it may want
            webhook = webhooks.copy_of_job(session, job_id, owner=owner, new_job_id=new_id)
            job = changes.retry(
                session,
                job_id,
                owner=owner,
                new_id=new_id,
                idempotency_key=idempotency_key,
                default_worker_kind=self.settings.default_worker_kind,
                key_id=caller.key_id,
            )
            return self._accept(session, job, webhook=webhook, scope=scope)

    def _prepare(
        self, request: JobRequest, *, ids: Sequence[str], keys: Sequence[IdempotencyKey | None], caller: Caller
    ) -> tuple[Submitted, ...] | list[CompressionSpec]:
        """The specifications with pinned revisions; or the earlier jobs of a repeated request.

        A repeated request does not contact the Hub, which may be down or have changed since.
        """
        settings, owner = self.settings, caller.owner
        with self.database.session(read_only=True) as session:
            earlier = self._find_or_count(session, keys, caller)
            if earlier:
                return earlier
            namespaces = Owners(session).output_namespaces(owner)
        request = self.planning.limited(request)
        check_worker_kind(request.compute.device, settings)
        self.check_webhook(request.webhook, caller)
        planner = self.planning.planner(request, caller=caller, namespaces=namespaces)
        model = admit_model(find_model(request.model, planner.hub), planner.hub)
        specs = []
        for one, job_id in zip(request.each(), ids, strict=True):
            spec = resolve_request(
                one,
                planner.hub,
                calibration_root=settings.calibration_root,
                job_id=job_id,
                rules=planner.rules,
                limits=planner.limits,
                model=model,
                tasks_directory=settings.tasks_path,
            )
            planner.check(spec, model)
            specs.append(spec)
        return specs

    def check_webhook(self, webhook: JobWebhookRequest | None, caller: Caller) -> None:
        """Raises `MissingScope`, and as `check_url` does."""
        if webhook is None:
            return
        if OF_WEBHOOKS not in caller.scopes:
            raise MissingScope(f"the key does not have the scope {OF_WEBHOOKS}, which a job with a webhook needs")
        check_url(webhook.url, self.settings, field="webhook.url")

    def _find_or_count(
        self, session: Session, keys: Sequence[IdempotencyKey | None], caller: Caller, *, exact: bool = False
    ) -> tuple[Submitted, ...]:
        """The earlier jobs of a repeated request. Raises `TooManyJobs` if there are none, and no place for new ones.

        `exact`: right before jobs are added, so that of the requests with one key, and for the last place, one is the
        first. Places are counted before jobs are looked for: what is accepted in between is found.
        """
        given = [key for key in keys if key is not None]
        if given and exact:
            changes.lock_key(session, given[0], owner=caller.owner)
        excess = self._excess(session, caller, adds=len(keys), exact=exact)
        earlier = changes.find_by_keys(session, given, owner=caller.owner)
        if excess is not None and not earlier:
            raise excess
        return tuple(_submitted_before(session, job) for job in earlier)

    def _excess(self, session: Session, caller: Caller, *, adds: int, exact: bool = False) -> TooManyJobs | None:
        """Why the caller may not add this many jobs; `None`: it may."""
        most = limit_of(caller.limits.jobs, self.settings.most_jobs)
        if most is None:
            return None
        if adds <= most and not changes.has_active(session, most - adds + 1, owner=caller.owner, exact=exact):
            return None
        more = "" if adds == 1 else f", and this sweep would add {adds}"
        return TooManyJobs(
            f"{counted(most, 'jobs')} queued or running is the limit of what you may have{more}; wait for some to "
            "end, or cancel some"
        )

    def _store(
        self,
        specs: Sequence[CompressionSpec],
        *,
        webhook: JobWebhookRequest | None,
        ids: Sequence[str],
        keys: Sequence[IdempotencyKey | None],
        scope: Scope,
    ) -> tuple[Submitted, ...]:
        caller = caller_of(scope)
        with self.database.session() as session:
            # again: others may have been added since
            earlier = self._find_or_count(session, keys, caller, exact=True)
            if earlier:
                return earlier
            submitted = []
            for spec, job_id, key in zip(specs, ids, keys, strict=True):
                secret, added = None, None
                if webhook is not None:  # before the job, whose first event it may want
                    secret = new_secret() if webhook.signed_by is None else None
                    new = NewWebhook(
                        url=webhook.url,
                        secret=self.open_secrets_box().seal(secret or new_secret(), field="webhook"),
                        events=webhook.events,
                        payload=webhook.payload,
                        signed_by=webhook.signed_by,
                        key_id=caller.key_id,
                    )
                    added = webhooks.add(session, new, owner=caller.owner, job_id=job_id)
                job = changes.add(
                    session,
                    spec=spec,
                    owner=caller.owner,
                    job_id=job_id,
                    idempotency_key=key,
                    default_worker_kind=self.settings.default_worker_kind,
                    key_id=caller.key_id,
                )
                submitted.append(self._accept(session, job, webhook=added, secret=secret, scope=scope))
            return tuple(submitted)

    def _accept(
        self,
        session: LedgerSession,
        job: Job,
        *,
        webhook: Webhook | None,
        secret: str | None = None,
        scope: Scope,
    ) -> Submitted:
        """What is left to do within the transaction that has added a job."""
        check_worker_kind(job.spec.compute.device, self.settings)
        session.after_commit.append(lambda: _enqueue(self.queue, job))
        deadline.check(scope)
        return Submitted(job=job, repeated=False, webhook=webhook, secret=secret)


def _submitted_before(session: Session, job: Job) -> Submitted:
    """A job that the same request has made before, with its webhook, whose secret is not shown again."""
    found = webhooks.page(session, owner=job.owner, job_id=job.id, limit=1).items
    return Submitted(job=job, repeated=True, webhook=next(iter(found), None))


def _enqueue(queue: Queue, job: Job) -> None:
    try:
        queue.enqueue(job.id, worker_kind=job.worker_kind)
    except QueueUnreachable as error:
        _log.warning("job accepted; the sweep will enqueue it", job_id=job.id, error=error.message)
    else:
        _log.info("job accepted", job_id=job.id)
