"""Plans for requests: what is known of this service's workers, and the planner that uses it."""

import asyncio
import glob
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

from starlette.concurrency import run_in_threadpool

from api.http.callers import Caller, limit_of
from replaceme_core.errors import InvalidInput, TooManyRequests
from replaceme_core.hardware import WorkerKind, has_native_bfloat16, total_memory, worker_kind_of
from replaceme_core.hub.cache import received_bytes
from replaceme_core.hub.port import DIRECTORY_PREFIX, Hub
from replaceme_core.ledger import reading
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import Owners, owner_hub
from replaceme_core.ledger.watching import Workers
from replaceme_core.library_errors import free_space
from replaceme_core.plan.plan import Plan, Planner, read_shape
from replaceme_core.plan.resources import ModelShape
from replaceme_core.request.admission import AdmittedModel, SizeLimits
from replaceme_core.request.resolve import Machine
from replaceme_core.request.spec import CompressionRequest, CompressionSpec
from replaceme_core.runner.messages import PastJob
from replaceme_core.settings import Settings
from replaceme_core.shapes import WorkerPlan

KEPT_SHAPES = 100
MOST_READING, MOST_READING_OF_ONE = 8, 4
"""Requests that read a repository at once: of all, and of one owner. Each may take 100 MB, and waits for the Hub."""
READING_WAIT_SECONDS = 10.0
RequestT = TypeVar("RequestT", bound=CompressionRequest)
DISK_SECONDS = 5.0
"""How long what was found of the disk is used."""


class Slots:
    """Limits how many requests do something at the same time: those of each owner, who may have many keys, and all.

    `doing` is what they do, and `seconds` how long one waits for it; `None`: as long as it takes.
    """

    def __init__(self, most: int, *, of_one: int, doing: str, seconds: float | None = None) -> None:
        self._all = asyncio.Semaphore(most)
        self._most, self._of_one, self._doing, self._seconds = most, of_one, doing, seconds
        self._own: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def hold(self, owner: str) -> AsyncIterator[None]:
        """Wait for a slot, without a thread, and hold it. Raises `TooManyRequests` after `seconds`."""
        own = self._own.setdefault(owner, asyncio.Semaphore(self._of_one))
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(self._seconds):
                    await held.enter_async_context(own)
                    await held.enter_async_context(self._all)
            except TimeoutError:
                raise TooManyRequests(
                    f"too many requests are {self._doing}, of you (at most {self._of_one} at once) or of all callers "
                    f"(at most {self._most}); try again in {TooManyRequests.retry_after:g} seconds"
                ) from None
            yield


class Planning:
    """Plans requests for the workers of this service."""

    def __init__(self, *, settings: Settings, database: Database, hub: Hub) -> None:
        self.slots = Slots(
            MOST_READING, of_one=MOST_READING_OF_ONE, doing="reading models", seconds=READING_WAIT_SECONDS
        )
        self._settings = settings
        self._database = database
        self._hub = hub
        self._shapes: dict[tuple[str, str], ModelShape] = {}
        self._disk = (-math.inf, 0)

    async def plan(self, request: CompressionRequest, *, caller: Caller) -> Plan:
        """What a job would take. Raises `AccessDenied` and `Unavailable` where the Hub or the database fails.

        Raises `InvalidInput` for a credential that the caller does not have, and `TooManyRequests`.
        """
        async with self.slots.hold(caller.owner):
            return await run_in_threadpool(self._plan, request, caller=caller)

    def _plan(self, request: CompressionRequest, *, caller: Caller) -> Plan:
        request, device = self.limited(request), request.compute.device
        with self._database.session(read_only=True) as session:
            namespaces = Owners(session).output_namespaces(caller.owner)
            counts = Workers(session).count_alive()
        plan = self.planner(request, caller=caller, namespaces=namespaces).plan(request)
        try:
            check_worker_kind(device, self._settings)
        except InvalidInput as error:
            plan = replace(plan, refusals=[error, *plan.refusals])
        kind = worker_kind_of(device) or self._settings.default_worker_kind
        estimated_for = self._kinds(device)[0]
        alive = any(counts.values()) if kind is None else counts[kind] > 0
        return replace(plan, worker=WorkerPlan(route=kind, estimated_for=estimated_for, alive=alive))

    def validate(self, request: CompressionRequest, *, caller: Caller) -> Plan:
        """The same for a request that would be accepted, with a slot. Raises what its submission would raise."""
        found = self._plan(request, caller=caller)
        if found.refusals:
            raise found.refusals[0]
        return found

    def limited(self, request: RequestT) -> RequestT:
        """`request` with the limits of time of this service, where it names none."""
        open_ones = [name for name in ("max_queue_seconds", "max_runtime_seconds") if getattr(request, name) is None]
        return request.model_copy(update={name: getattr(self._settings, name) for name in open_ones})

    def planner(self, request: CompressionRequest, *, caller: Caller, namespaces: tuple[str, ...] | None) -> Planner:
        """The planner for the kind of worker that would run this request. Raises as `owner_hub` does.

        `namespaces` are those in which results of the owner may go; `None`: those of everybody.
        """
        kind, settings, owner = self._kinds(request.compute.device)[0], self._settings, caller.owner
        return Planner(
            hub=self.hub_of(request, caller),
            machine=self._machine(kind),
            history=partial(self._history, kind),
            rules=settings.output_rules(is_own=partial(self._has_made, owner=owner), namespaces=namespaces),
            limits=self.limits_of(caller),
            calibration_root=settings.calibration_root,
            tasks_directory=settings.tasks_path,
            is_remote=not settings.hub.startswith(DIRECTORY_PREFIX),
            read_shape=self._shape,
        )

    def hub_of(self, request: CompressionRequest | CompressionSpec, caller: Caller) -> Hub:
        """The Hub with the credential that is named. Raises as `owner_hub` does."""
        return owner_hub(
            caller.owner,
            request.credential,
            settings=self._settings,
            database=self._database,
            default=lambda: self._hub,
        )

    def limits_of(self, caller: Caller) -> SizeLimits:
        """What a job of this caller may use."""
        first, *others = self._kinds(None)
        return SizeLimits(
            model_bytes=limit_of(caller.limits.model_bytes, self._settings.most_model_bytes),
            tokens=limit_of(caller.limits.tokens, self._settings.most_tokens),
            kind=None if others else first,
        )

    def _kinds(self, device: str | None) -> Sequence[WorkerKind]:
        """The kinds of workers that may take a job with this device. It is estimated for the first, a CPU before a GPU:
        the slower one."""
        named = worker_kind_of(device) or self._settings.default_worker_kind
        kinds = (self._settings.worker_kinds or WorkerKind) if named is None else (named,)
        return [kind for kind in WorkerKind if kind in kinds]

    def _machine(self, kind: WorkerKind) -> Machine:
        """What the settings say of the workers; with the embedded default the worker is on this machine."""
        settings, here = self._settings, self._settings.uses_embedded_default
        memory, disk = settings.worker_memory_bytes, settings.worker_disk_bytes
        if here and memory is None:
            memory = total_memory()
        if here and disk is None:
            disk = self._free_disk()
        return Machine(
            kind=kind,
            memory_bytes=memory,
            device_bytes=settings.worker_gpu_memory_bytes if kind is WorkerKind.GPU else None,
            disk_bytes=disk,
            download_bytes=None if settings.hub_address is None else settings.hub_cache_bytes,
            cpu_dtype="bfloat16" if here and has_native_bfloat16() else "float32",
            cache_bytes=settings.statistics_cache_bytes,
        )

    def _free_disk(self) -> int:
        """Free bytes, and those of the downloads: the worker removes old ones, and the model may be among them."""
        read_at, found = self._disk
        if time.monotonic() - read_at > DISK_SECONDS:
            cache = self._settings.hub_cache
            downloads = glob.glob("*/blobs/*", root_dir=cache)  # noqa: PTH207  (pathlib's fails where a directory goes)
            found = free_space(self._settings.resolved_data) + sum(received_bytes(cache / blob) for blob in downloads)
            self._disk = (time.monotonic(), found)
        return found

    def _shape(self, hub: Hub, model: AdmittedModel, files: Sequence[str]) -> ModelShape:
        """The shape of a model; a commit does not change, so those of the last ones are kept."""
        key = (model.snapshot.repo_id, model.snapshot.revision)
        shape = self._shapes.get(key) or read_shape(hub, model, files)
        self._shapes[key] = shape
        for oldest in [*self._shapes][:-KEPT_SHAPES]:
            self._shapes.pop(oldest, None)  # another thread may have done it
        return shape

    def _history(self, kind: WorkerKind) -> Sequence[PastJob]:
        with self._database.session(read_only=True) as session:
            return reading.past_jobs(session, kind)

    def _has_made(self, job_id: str, repo_id: str, *, owner: str) -> bool:
        with self._database.session(read_only=True) as session:
            return reading.has_made(session, job_id, repo_id, owner=owner)


def check_worker_kind(device: str | None, settings: Settings) -> None:
    """Raises `InvalidInput` for a job that none of this service's workers can run."""
    worker_kind = worker_kind_of(device) or settings.default_worker_kind
    if worker_kind is None or settings.worker_kinds is None or worker_kind in settings.worker_kinds:
        return
    there = " and ".join(settings.worker_kinds)
    needs = f"device {device!r} needs" if device is not None else "a job without a device needs, by default,"
    raise InvalidInput(
        f"{needs} a worker of kind {worker_kind}; this service has workers for {there} only",
        field="compute.device",
        value=device,
    )
