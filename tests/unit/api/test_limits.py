"""Limits of callers: requests in a minute, unfinished jobs, sizes of models and texts."""

import asyncio
import fcntl
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from api.http.requests import MOST_CHARACTERS, MOST_DEPTH
from api.main import create_app
from api.routes.deps import WRITE_SLOTS, WRITE_SLOTS_OF_ONE
from api.routes.planning import MOST_READING, MOST_READING_OF_ONE, Slots
from benchmarks.harness.processes import wait_until
from benchmarks.harness.stub_model import stub_weights
from replaceme_core.errors import TooManyRequests
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import attempts
from replaceme_core.ledger.database import Database
from replaceme_core.settings import Settings
from replaceme_core.shapes import KeyLimits
from tests.fixtures.api.keys import Holder, hold_key
from tests.fixtures.api.requests import SMALLEST, assert_problem, fields


def holder_with(client: TestClient, settings: Settings, *, owner: str = "a", **limits: int) -> Holder:
    scopes = ["jobs:read", "jobs:write", "webhooks:write"]
    return hold_key(client, settings, owner=owner, scopes=scopes, limits=KeyLimits(**limits))


def test_requests_in_a_minute(client: TestClient, settings: Settings) -> None:
    holder, other = (holder_with(client, settings, requests_per_minute=3) for _ in range(2))
    job_id = holder.post("/jobs", json=SMALLEST).json()["id"]
    for remaining in (1, 0):
        answer = holder.get("/jobs")
        assert answer.status_code == 200
        assert answer.headers["ratelimit-policy"] == '"requests";q=3;w=60'
        found = re.fullmatch(r'"requests";r=(\d+);t=(\d+)', answer.headers["ratelimit"])
        assert found is not None
        assert (int(found[1]), 1 <= int(found[2]) <= 60) == (remaining, True)
    refused = holder.get("/jobs")
    assert_problem(refused, status=429, code="too_many_requests")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["ratelimit"].startswith('"requests";r=0;')
    assert other.get("/jobs").status_code == 200, "each key has a limit of its own"
    cancelled = holder.post(f"/jobs/{job_id}/cancel")
    assert cancelled.status_code == 200, "cancel is never limited"
    assert "ratelimit" not in cancelled.headers
    assert client.get("/health").status_code == 200


def test_requests_without_a_key_are_limited_too(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"requests_per_minute": 1}))) as client:
        assert client.get("/jobs").status_code == 200
        assert_problem(client.get("/jobs"), status=429, code="too_many_requests")
    with TestClient(create_app(settings.model_copy(update={"requests_per_minute": 0}))) as client:
        assert "ratelimit" not in client.get("/jobs").headers


def test_unfinished_jobs(client: TestClient, settings: Settings) -> None:
    holder = holder_with(client, settings, jobs=2)
    ids = [holder.post("/jobs", json=SMALLEST).json()["id"] for _ in range(2)]
    refused = holder.post("/jobs", json=SMALLEST, headers={"idempotency-key": "new"})
    body = assert_problem(refused, status=429, code="too_many_jobs")
    assert "2 jobs" in str(body["detail"])
    assert int(refused.headers["retry-after"]) > 0
    validated = holder.post("/jobs", json={**SMALLEST, "validate_only": True})
    assert_problem(validated, status=429, code="too_many_jobs")
    assert holder.post(f"/jobs/{ids[0]}/cancel").json()["status"] == "cancelled"
    assert holder.post("/jobs", json=SMALLEST, headers={"idempotency-key": "new"}).status_code == 202
    assert holder.post("/jobs", json=SMALLEST, headers={"idempotency-key": "new"}).status_code == 202, "a repetition"
    other = hold_key(client, settings, owner="b", scopes=["jobs:write"], limits=KeyLimits(jobs=1))
    assert other.post("/jobs", json=SMALLEST).status_code == 202, "the jobs of others do not count"


def test_jobs_that_run_at_the_same_time(client: TestClient, settings: Settings, sqlite_database: Database) -> None:
    """For the jobs of one key, those that it retries included; another key of the owner goes on."""
    holder, other = holder_with(client, settings, running_jobs=1), holder_with(client, settings)
    cancelled = holder.post("/jobs", json=SMALLEST).json()["id"]
    holder.post(f"/jobs/{cancelled}/cancel")
    jobs = [holder.post("/jobs", json=SMALLEST).json()["id"], holder.post(f"/jobs/{cancelled}/retry").json()["id"]]
    free = other.post("/jobs", json=SMALLEST).json()["id"]
    with sqlite_database.session() as session:
        claims = [attempts.claim_next(session, worker="w", lease_seconds=60) for _ in range(3)]
    assert [None if claim is None else claim.job_id for claim in claims] == [jobs[0], free, None]
    assert holder.get(f"/jobs/{jobs[1]}").json()["status"] == "queued"


def test_the_size_of_a_model(client: TestClient, settings: Settings) -> None:
    size = len(stub_weights(30))
    holder = holder_with(client, settings, model_bytes=size - 1)
    answer = holder.post("/jobs", json=SMALLEST)
    assert fields(answer, code="limit_exceeded") == {"model": "org/name"}
    assert f"{size:,} bytes" in answer.text and f"at most {size - 1:,}" in answer.text
    assert holder_with(client, settings, model_bytes=size).post("/jobs", json=SMALLEST).status_code == 202


def test_calibration_tokens(client: TestClient, settings: Settings) -> None:
    short, default = {"samples": 10, "max_length": 100}, 96 * 512
    for calibration, device, most, is_refused in (
        *((short, None, 999, True), (short, None, 1000, False)),
        *(({}, "cpu", default - 1, True), ({}, "cpu", default, False)),
        ({}, None, default, True),  # a worker with a GPU would take more
    ):
        holder = holder_with(client, settings, tokens=most)
        text = {"dataset": "builtin:pydoc-topics", **calibration}
        answer = holder.post("/jobs", json={**SMALLEST, "calibration": text, "compute": {"device": device}})
        if is_refused:
            assert fields(answer, code="limit_exceeded").keys() == {"calibration.samples"}
        else:
            assert answer.status_code == 202


@pytest.mark.parametrize(
    ("workers", "status"),
    [
        ({"worker_kinds": (WorkerKind.CPU,)}, 202),
        ({"default_worker_kind": WorkerKind.CPU}, 202),
        ({"worker_kinds": (WorkerKind.GPU, WorkerKind.CPU)}, 422),
        ({"default_worker_kind": WorkerKind.GPU}, 422),
    ],
)
def test_the_tokens_of_a_job_without_a_device_are_those_of_the_workers_that_may_take_it(
    settings: Settings, workers: dict[str, object], status: int
) -> None:
    with TestClient(create_app(settings.model_copy(update=workers))) as client:
        holder = holder_with(client, settings, tokens=96 * 512)
        assert holder.post("/jobs", json={**SMALLEST, "calibration": "builtin:pydoc-topics"}).status_code == status


def test_a_retry_meets_the_limits_of_its_own_key(client: TestClient, settings: Settings) -> None:
    """The job that it repeats may be of another key of this owner, or of the time before a limit."""
    text = {"dataset": "builtin:pydoc-topics", "samples": 10, "max_length": 100}
    holder = holder_with(client, settings)
    job_id = holder.post("/jobs", json={**SMALLEST, "calibration": text}).json()["id"]
    holder.post(f"/jobs/{job_id}/cancel")
    key = {"idempotency-key": "once"}
    first = holder.post(f"/jobs/{job_id}/retry", headers=key)
    assert first.status_code == 202, first.text
    for limits, field in (({"tokens": 999}, "calibration.samples"), ({"model_bytes": 1}, "model")):
        limited = holder_with(client, settings, **limits)
        assert fields(limited.post(f"/jobs/{job_id}/retry"), code="limit_exceeded").keys() == {field}
        again = limited.post(f"/jobs/{job_id}/retry", headers=key)
        assert (again.status_code, again.json()["id"]) == (202, first.json()["id"]), "a repetition adds nothing"
    exact = holder_with(client, settings, tokens=1000, model_bytes=len(stub_weights(30)))
    assert exact.post(f"/jobs/{job_id}/retry").status_code == 202


@contextmanager
def unreadable(root: Path, repo_id: str) -> Iterator[None]:
    """Who reads this repository of a directory hub waits, as where another process is replacing it."""
    place = root / ".commits" / "models" / repo_id
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_requests_that_read_models_at_the_same_time(
    client: TestClient, settings: Settings, hub_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One owner, with any number of keys, leaves half of the slots to others; two keep a third out.

    The look-up of a webhook's host needs a slot, too.
    """
    slots: Slots = client.app.state.services().planning.slots  # type: ignore[attr-defined]
    monkeypatch.setattr(slots, "_seconds", 0.2)
    greedy, again, second, third = (holder_with(client, settings, owner=name) for name in ("a", "a", "b", "c"))
    hook = f"/webhooks/{greedy.post('/webhooks', json={'url': 'https://hooks.example.com'}).json()['id']}"
    move = {"url": "https://hooks.example.com/other"}
    free = "org/strange"  # another model, of which a plan says that it is refused

    def plan(holder: Holder, model: str = "org/name") -> Response:
        return holder.post("/plans", json={**SMALLEST, "model": model})

    with ThreadPoolExecutor(20) as pool:
        with unreadable(hub_root, "org/name"):
            held = [pool.submit(plan, greedy) for _ in range(MOST_READING_OF_ONE)]
            wait_until(lambda: "a" in slots._own and slots._own["a"].locked(), seconds=20, what="all slots of one")
            for refused in (
                plan(greedy, free),
                plan(again, free),
                greedy.post("/jobs", json=SMALLEST),
                greedy.post("/webhooks", json=move),
                greedy.patch(hook, json=move),
            ):
                assert_problem(refused, status=429, code="too_many_requests")
                assert int(refused.headers["retry-after"]) > 0
            assert plan(second, free).status_code == 200
            held += [pool.submit(plan, second) for _ in range(MOST_READING - MOST_READING_OF_ONE)]
            wait_until(slots._all.locked, seconds=20, what="all slots")
            assert_problem(plan(third, free), status=429, code="too_many_requests")
            assert third.get("/jobs").status_code == client.get("/health").status_code == 200
            assert not any(one.done() for one in held)
        assert {one.result().status_code for one in held} == {200}
    assert plan(third, free).status_code == 200


def test_writes_of_one_owner_leave_slots_to_others() -> None:
    async def hold_all() -> list[bool]:
        slots = Slots(WRITE_SLOTS, of_one=WRITE_SLOTS_OF_ONE, doing="writing", seconds=0.1)
        async with AsyncExitStack() as held:
            for _ in range(WRITE_SLOTS_OF_ONE):
                await held.enter_async_context(slots.hold("a"))
            found = []
            for owner in ("a", "b"):
                try:
                    await held.enter_async_context(slots.hold(owner))
                    found.append(True)
                except TooManyRequests:
                    found.append(False)
            return found

    assert asyncio.run(hold_all()) == [False, True]


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def test_depth_and_strings_of_a_body(client: TestClient) -> None:
    for body, words in (
        (nested(MOST_DEPTH + 1), f"at most {MOST_DEPTH} levels"),
        ('{"a": [' + "[" * MOST_DEPTH + "]" * MOST_DEPTH + "]}", f"at most {MOST_DEPTH} levels"),
        (f'{{"model": "{"x" * (MOST_CHARACTERS + 1)}"}}', "at most 8,192 characters"),
        (f'{{"labels": {{"{"x" * (MOST_CHARACTERS + 1)}": 1}}}}', "at most 8,192 characters"),
        (nested(MOST_DEPTH), "unknown field"),  # what is within these bounds is read
        (json.dumps({**SMALLEST, "model": "x" * MOST_CHARACTERS}), "model: "),
    ):
        answer = client.post("/jobs", content=body, headers={"content-type": "application/json"})
        assert words in str(assert_problem(answer, status=422, code="invalid_input")["detail"])
