"""`GET /metrics`: who gets it, and what it says of requests, jobs, workers and webhooks."""

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from api import monitoring
from api.main import create_app
from benchmarks.harness.jobs import owner_of
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import changes, reading
from replaceme_core.runner.messages import Stage
from replaceme_core.settings import Settings
from tests.fixtures.api.keys import hold_key
from tests.fixtures.api.requests import assert_problem, submit
from tests.fixtures.api.service import METRICS_KEY
from tests.fixtures.jobs.ledger import Ledger

ALLOWED = {"authorization": f"Bearer {METRICS_KEY}"}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(client: TestClient) -> Samples:
    answer = client.get("/metrics", headers=ALLOWED)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, tuple(sorted(labels.items()))))


def test_only_the_key_of_the_metrics_opens_them(client: TestClient, settings: Settings) -> None:
    holder = hold_key(client, settings, owner="a", scopes=["jobs:read", "jobs:write", "admin"])
    for headers in ({}, {"authorization": f"Bearer {METRICS_KEY}x"}, {"authorization": f"Basic {METRICS_KEY}"}):
        refused = client.get("/metrics", headers=headers)
        assert_problem(refused, status=401, code="unauthenticated")
        assert refused.headers["www-authenticate"].startswith("Bearer")
    assert_problem(holder.get("/metrics"), status=401, code="unauthenticated")
    assert client.get("/metrics", headers=ALLOWED).status_code == 200
    assert_problem(client.get("/jobs", headers=ALLOWED), status=401, code="unauthenticated")
    with TestClient(create_app(settings.model_copy(update={"metrics_key": None}))) as without:
        assert_problem(without.get("/metrics", headers=ALLOWED), status=404, code="not_found")
    with pytest.raises(ValueError, match="at least 16 characters"):
        Settings(_env_file=None, metrics_key="x" * 15)
    assert Settings(_env_file=None, metrics_key="").metrics_key is None


def test_requests_by_route(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    before = scrape(client)
    job_id = submit(client)
    tag = client.get(f"/jobs/{job_id}").headers["etag"]
    client.get(f"/jobs/{job_id}", headers={"if-none-match": tag})
    client.head(f"/jobs/{job_id}")
    client.get("/jobs/00000000-0000-4000-8000-000000000000")
    client.get("/nowhere/at/all")
    client.request("BREW", "/jobs")
    monkeypatch.setattr(reading, "page", fail)
    assert_problem(client.get("/jobs"), status=500, code="internal_error")
    samples = scrape(client)

    def added(name: str, **labels: str) -> float:
        return (value(samples, name, **labels) or 0) - (value(before, name, **labels) or 0)

    for method, route, status in (
        *(("POST", "/jobs", "202"), ("GET", "/jobs", "500"), ("GET", "none", "404"), ("HEAD", "/jobs/{job_id}", "200")),
        *(("GET", "/jobs/{job_id}", status) for status in ("200", "304", "404")),
    ):
        assert added("replaceme_http_requests_total", method=method, route=route, status=status) == 1, (route, status)
    assert not [labels for _, labels in samples if job_id in str(labels) or "BREW" in str(labels)]
    seconds = "replaceme_http_request_duration_seconds"
    assert added(f"{seconds}_count", method="GET", route="/jobs/{job_id}") == 3
    assert 0 < added(f"{seconds}_sum", method="GET", route="/jobs/{job_id}") < 10


def test_jobs_in_the_queue_and_their_ends(client: TestClient, ledger: Ledger) -> None:
    samples = scrape(client)
    assert value(samples, "replaceme_jobs", status="queued", kind="any") == 0
    assert value(samples, "replaceme_job_events_total", type="succeeded", code="") == 0
    for code in ("internal_error", "out_of_memory"):  # Prometheus sees an increase only from a value that was there
        assert value(samples, "replaceme_job_events_total", type="failed", code=code) == 0
    assert value(samples, "replaceme_database_up") == 1
    waiting, done, failed, running = (ledger.add() for _ in range(4))
    ledger.succeed(done)
    ledger.fail(failed)
    ledger.claim(running)
    samples = scrape(client)
    for status, kind, count in (("queued", "any", 1), ("running", "any", 1), ("queued", "gpu", 0)):
        assert value(samples, "replaceme_jobs", status=status, kind=kind) == count
    age = "replaceme_oldest_queued_job_age_seconds"
    assert 0 < (value(samples, age, kind="any") or 0) < 60
    assert value(samples, age, kind="cpu") == 0
    events = {kind: value(samples, "replaceme_job_events_total", type=kind, code="") for kind in ("created", "claimed")}
    assert events == {"created": 4, "claimed": 3}
    assert value(samples, "replaceme_job_events_total", type="succeeded", code="") == 1
    assert value(samples, "replaceme_job_events_total", type="failed", code="out_of_memory") == 1
    with ledger.database.session() as session:
        changes.delete_job(session, done, owner=owner_of(session, done))
    assert value(scrape(client), "replaceme_job_events_total", type="succeeded", code="") == 1, "counters never fall"
    assert ledger.status(waiting) == "queued"


def test_how_long_stages_took(client: TestClient, ledger: Ledger) -> None:
    job_id = ledger.add()
    claim = ledger.claim(job_id)
    ledger.progress(claim, Stage.RESOLVE, Stage.DOWNLOAD, Stage.CALIBRATE)
    name = "replaceme_stage_duration_seconds"
    assert value(scrape(client), f"{name}_count", stage="calibrate") is None, "it goes on"
    ledger.release(claim)
    ledger.cancel(job_id)
    samples = scrape(client)
    counts = {stage: value(samples, f"{name}_count", stage=stage) for stage in ("resolve", "download", "calibrate")}
    assert counts == {"resolve": 1, "download": 1, "calibrate": 1}
    assert value(samples, f"{name}_bucket", stage="download", le="1.0") == 1
    assert value(samples, f"{name}_bucket", stage="download", le="+Inf") == 1
    assert (value(samples, f"{name}_sum", stage="download") or 0) >= 0


def test_workers_and_their_memory(client: TestClient, ledger: Ledger) -> None:
    memory = {"total_bytes": 100, "used_bytes": 40, "gpu_total_bytes": 80, "gpu_used_bytes": 9}
    ledger.report_worker("h:1", *WorkerKind, **memory)
    ledger.report_worker("h:2", WorkerKind.CPU, used_bytes=7)
    ledger.report_worker("lost:3", WorkerKind.CPU, **memory, alive_seconds=-1)
    samples = scrape(client)
    assert [value(samples, "replaceme_workers", kind=kind) for kind in ("cpu", "gpu")] == [2, 1]
    found = {key: number for key, number in samples.items() if key[0].startswith("replaceme_worker_")}
    assert found == {
        ("replaceme_worker_memory_limit_bytes", (("worker", "h:1"),)): 100,
        ("replaceme_worker_memory_used_bytes", (("worker", "h:1"),)): 40,
        ("replaceme_worker_memory_used_bytes", (("worker", "h:2"),)): 7,
        ("replaceme_worker_gpu_memory_limit_bytes", (("worker", "h:1"),)): 80,
        ("replaceme_worker_gpu_memory_used_bytes", (("worker", "h:1"),)): 9,
    }


def test_frequent_scrapes_read_the_database_once(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitoring, "CACHE_SECONDS", 600.0)
    with TestClient(create_app(settings)) as client:
        assert value(scrape(client), "replaceme_jobs", status="queued", kind="any") == 0
        ledger.add()
        assert value(scrape(client), "replaceme_jobs", status="queued", kind="any") == 0


def test_without_the_database_the_rest_is_shown(settings: Settings, tmp_path: Any) -> None:
    broken = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}"})
    with TestClient(create_app(broken)) as client:
        client.get("/health")
        samples = scrape(client)
    assert value(samples, "replaceme_database_up") == 0
    assert value(samples, "replaceme_http_requests_total", method="GET", route="/health", status="200") == 1
    assert value(samples, "replaceme_jobs", status="queued", kind="any") is None
