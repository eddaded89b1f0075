"""Jobs through a real `celery worker`, a real broker and a real database; only the pipeline is a stub.

What becomes of jobs, what a worker reports and logs of them, and how it ends: shut down, or killed.
"""

import json
import signal
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil
import pytest

from benchmarks.harness.jobs import events_of, metrics_of, report_of
from benchmarks.harness.processes import WAIT_SECONDS, Started, wait_until
from benchmarks.harness.runners.gates import is_held, open_gates, set_gate
from benchmarks.harness.site import MODEL, SECRET, Site
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import reading
from replaceme_core.ledger.records import Worker
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.watching import Workers, gauges
from replaceme_core.plan.duration import MODELLED
from replaceme_core.runner.messages import Stage
from tests.fixtures.jobs.ledger import Ledger
from tests.fixtures.service.otlp import ReceivedSpan, collector
from worker.lease import POLL_SECONDS
from worker.workspace import TEMPORARY


def test_a_job_runs_from_message_to_publication(working_site: Site) -> None:
    site, before = working_site, working_site.publications()
    job_id = site.add()
    job = site.wait_for_end(job_id)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.attempt == 1
    assert job.progress.overall == 1
    assert job.result is not None
    assert job.result.removed_blocks == (2,)
    assert job.result.kept_blocks == (0, 1, 3)
    assert job.spec.compute.device == "cpu"
    assert job.spec.model.revision is not None
    assert len(job.spec.model.revision) == 40
    [commit] = site.publications()[len(before) :]
    assert commit["revision"] == job.result.revision
    assert commit["trailer"] == f"ReplaceMe-Job: {job_id}"
    assert (site.hub_directory / "acme" / "smaller" / "model.safetensors").read_bytes() == b"weights"
    metrics = metrics_of(site.database, job_id)
    report = report_of(site.database, job_id)
    stages = [event.data["stage"] for event in events_of(site.database, job_id) if event.type == "stage"]
    found = [(metric.name, metric.value, metric.stage) for metric in metrics if metric.name != MODELLED]
    assert found == [("tokens", 512.0, Stage.CALIBRATE)]
    assert [metric.stage for metric in metrics if metric.name == MODELLED] == [Stage.DOWNLOAD, Stage.PUBLISH]
    assert report["loss"] == "nan"
    assert str(report["cache_directory"]).endswith("/cache/statistics")
    assert report["hub"] is None, "a directory has no pages to link to"
    assert stages == ["resolve", "download", "calibrate", "select", "solve", "fold", "save", "publish"]
    site.wait_for_empty_workspace()
    assert site.runners() == []


def test_one_message_serves_all_jobs_that_can_start(embedded_site: Site) -> None:
    """That of another one may have come while its key was at a limit, and found nothing."""
    site = embedded_site
    site.extra = {"REPLACEME_SWEEP_SECONDS": "3600"}  # messages alone
    first, second = site.add(enqueue=False), site.add(enqueue=False)
    site.enqueue(second)
    site.start_worker()
    for job_id in (first, second):
        assert site.wait_for_end(job_id).status is JobStatus.SUCCEEDED
        assert site.job(job_id).attempt == 1
    for worker_kind in (WorkerKind.GPU, WorkerKind.CPU):  # it consumes from all queues
        assert site.wait_for_end(site.add(worker_kind=worker_kind)).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize("how", [{"stub_child": "yes"}, {"stub_stubborn": "yes"}], ids=["child", "ignores SIGTERM"])
def test_cancel_ends_a_running_job_within_five_seconds(working_site: Site, how: dict[str, str]) -> None:
    site, before = working_site, working_site.publications()
    job_id = site.add(stub_seconds="600", **how)
    site.wait_for_runner(job_id)
    site.cancel(job_id)
    job = site.wait_for_end(job_id)  # long before the lease is renewed
    assert POLL_SECONDS + site.settings.cancel_grace_seconds < 5, "all that is waited for"
    assert (job.status, job.result) == (JobStatus.CANCELLED, None)
    assert site.runners() == []
    site.wait_for_empty_workspace()
    assert site.publications() == before


def test_no_secret_reaches_the_runner_and_its_log_is_kept(working_site: Site) -> None:
    job_id = working_site.add()
    assert working_site.wait_for_end(job_id).status is JobStatus.SUCCEEDED
    environment = report_of(working_site.database, job_id)["environment"]
    assert isinstance(environment, list)
    names = {str(entry).partition("=")[0] for entry in environment}
    assert not {name for name in names if name.startswith("REPLACEME_") or "TOKEN" in name.removesuffix("_TOKEN_")} - {
        "HF_HUB_DISABLE_IMPLICIT_TOKEN",
        "TOKENIZERS_PARALLELISM",
    }
    assert SECRET not in json.dumps(environment)
    assert {"HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1"} <= set(environment)
    assert SECRET not in working_site.started[0].log.read_text()
    with working_site.database.session(read_only=True) as session:
        lines = reading.log(session, job_id, limit=1000, owner="tests").items
    assert "a library writes something on standard output" in [line.text for line in lines]


def test_progress_is_seen_while_the_job_runs(working_site: Site) -> None:
    site = working_site
    job_id = site.add(stub_seconds="600")
    site.wait_for_runner(job_id)
    wait_until(lambda: site.job(job_id).progress.eta_seconds is not None, what="an estimate")
    first = site.job(job_id)
    assert first.stage is Stage.CALIBRATE
    assert 0 < first.progress.overall < 1
    wait_until(lambda: site.job(job_id).progress.overall > first.progress.overall, what="progress")
    site.cancel(job_id)
    site.wait_for_end(job_id)


MEMORY = ("memory_limit", "memory_used", "gpu_memory_limit", "gpu_memory_used")


def workers(site: Site) -> tuple[Worker, ...]:
    with site.database.session(read_only=True) as session:
        return Workers(session).list(owner="tests")


def memory_of(site: Site, worker: Worker) -> dict[str, float]:
    """What monitoring shows of its memory, by name."""
    with site.database.session(read_only=True) as session:
        found = {gauge.name: gauge.values for gauge in gauges(session)}
    values = {name: found[f"worker_{name}_bytes"].get((worker.name,)) for name in MEMORY}
    return {name: value for name, value in values.items() if value is not None}


def counts_the_runner(site: Site, worker: Worker) -> bool:
    """Whether the worker has looked at its runner since that is as large as it is now."""
    with suppress(psutil.NoSuchProcess):
        sizes = [process.memory_info().rss for process in site.runners()]
        return bool(sizes) and memory_of(site, worker).get("memory_used", 0) > max(sizes)
    return False


def test_a_worker_is_listed_with_its_job_until_it_ends(embedded_site: Site) -> None:
    site = embedded_site
    worker = site.start_worker(queues="replaceme,cpu")
    job_id = site.add(stub_seconds="600")
    wait_until(lambda: [(each.jobs, each.alive) for each in workers(site)] == [((job_id,), True)], what="its job")
    (listed,) = workers(site)
    assert listed.kinds == (WorkerKind.CPU,)
    assert "CPU" in listed.device
    wait_until(lambda: counts_the_runner(site, listed), what="memory with the runner's")
    memory = memory_of(site, listed)
    assert memory.keys() == {"memory_limit", "memory_used"}
    assert memory["memory_used"] < memory["memory_limit"]
    assert listed.host == str(site.job(job_id).worker).rpartition(":")[0]
    site.cancel(job_id)
    assert site.wait_for_end(job_id).status is JobStatus.CANCELLED
    worker.process.terminate()
    worker.process.wait(timeout=WAIT_SECONDS)
    assert workers(site) == ()


WAITS = "without a message: no job can start"
TRACE_IDS = {"succeeded": "4bf92f3577b34da6a3ce929d0e0e4736", "failed": "4bf92f3577b34da6a3ce929d0e0e4737"}
CALLER = "00f067aa0ba902b7"
BODY = {"model": MODEL, "ratio": 0.25, "calibration": "builtin:pydoc-topics", "evaluation": {"enabled": False}}
SERVER, PRODUCER, CONSUMER = 2, 4, 5
KNOWN = {
    "http.request.method",
    "http.response.status_code",
    "http.route",
    "messaging.operation.name",
    "messaging.destination.name",
    "replaceme.job.id",
    "replaceme.attempt",
    "replaceme.outcome",
    "replaceme.stage",
    "error.type",
}


def only(spans: list[ReceivedSpan], name: str) -> ReceivedSpan:
    (found,) = [span for span in spans if span.name == name]
    return found


def lines_of(started: Started) -> list[dict[str, object]]:
    """The log, of which each line is an object, apart from what Celery prints before it begins to log."""
    return [json.loads(line) for line in started.log.read_text().splitlines() if line.startswith("{")]


def about(lines: list[dict[str, object]], **names: object) -> list[dict[str, object]]:
    return [line for line in lines if names.items() <= line.items()]


def test_the_ids_of_a_request_reach_the_logs_and_one_trace(server_site: Site) -> None:
    """From the request through the message and the database to the attempt, its runner and its stages."""
    site, answers = server_site, {}
    with collector() as there:
        site.extra |= {"OTEL_EXPORTER_OTLP_ENDPOINT": there.url, "REPLACEME_SWEEP_SECONDS": "3600"}  # messages alone
        worker, api = site.start_worker(), site.start_api()
        assert api.url is not None
        for ends, trace_id in TRACE_IDS.items():
            labels = {"planted": "in-a-label"} | ({"stub.fail": "space"} if ends == "failed" else {})
            sent = {"traceparent": f"00-{trace_id}-{CALLER}-01", "x-request-id": f"build-{ends}"}
            body = {**BODY, "labels": labels, "output": "acme/smaller"}
            answers[ends] = httpx2.post(f"{api.url}/jobs", json=body, headers=sent, timeout=WAIT_SECONDS)
            assert answers[ends].status_code == 202, answers[ends].text
            assert site.wait_for_end(answers[ends].json()["id"]).status.value == ends
            # until then it takes the next job without a message
            wait_until(lambda: worker.log.read_text().count(WAITS) == len(answers), what="the end of the message")
        assert (
            httpx2.get(f"{api.url}/jobs", params={"label": "planted=in-a-query"}, timeout=WAIT_SECONDS).status_code
            == 200
        )
        assert httpx2.get(f"{api.url}/health", timeout=WAIT_SECONDS).status_code == 200
        worker.stop()
        api.stop()
        spans, raw = there.spans(), b"".join(one.body for one in there.received)
    for ends, answer in answers.items():
        check_log(lines_of(api), lines_of(worker), ends, answer)
        check_trace([span for span in spans if span.trace == TRACE_IDS[ends]], ends, answer)
    others = {span.trace for span in spans if span.name == "GET /jobs"}
    assert others
    assert others.isdisjoint(TRACE_IDS.values())
    assert {name for span in spans for name in span.attributes} <= KNOWN
    for planted in (SECRET, "in-a-label", "in-a-query", "build-", "acme", "/health"):
        assert planted.encode() not in raw


def check_log(
    of_api: list[dict[str, object]], of_worker: list[dict[str, object]], ends: str, answer: httpx2.Response
) -> None:
    ids, job_id = {"request_id": f"build-{ends}", "trace_id": TRACE_IDS[ends]}, answer.json()["id"]
    (accepted,) = about(of_api, event="job accepted", **ids)
    assert accepted["job_id"] == job_id
    (request,) = about(of_api, event="request", path="/jobs", method="POST", **ids)
    assert (request["status"], request["service"]) == (202, "api")
    of_attempt = about(of_worker, job_id=job_id, attempt=1, service="worker", **ids)
    assert about(of_attempt, event="a library writes something on standard output", logger="runner")
    (end,) = [line for line in of_attempt if "outcome" in line]
    if ends == "succeeded":
        assert (end["outcome"], end["level"], end["repo_id"]) == ("succeeded", "info", "acme/smaller")
    else:
        assert (end["outcome"], end["level"], end["code"]) == ("failed", "error", "out_of_space")
        assert "no space left" in str(end["event"])


def check_trace(spans: list[ReceivedSpan], ends: str, answer: httpx2.Response) -> None:
    request, sent, attempt = (only(spans, name) for name in ("POST /jobs", "send replaceme", "attempt"))
    assert (request.service, request.kind, request.parent) == ("replaceme-api", SERVER, CALLER)
    assert answer.headers["traceparent"] == f"00-{TRACE_IDS[ends]}-{request.id}-01"
    assert (sent.service, sent.kind, sent.parent) == ("replaceme-api", PRODUCER, request.id)
    assert (attempt.service, attempt.kind, attempt.parent) == ("replaceme-worker", CONSUMER, request.id)
    assert attempt.links == (sent.id,), "the message that woke the worker up"
    assert attempt.attributes["replaceme.job.id"] == answer.json()["id"]
    assert attempt.attributes["replaceme.outcome"] == ends
    assert attempt.failed is (ends == "failed")
    assert attempt.attributes.get("error.type") == ("out_of_space" if ends == "failed" else None)
    stages = [span for span in spans if span.name.startswith("stage ")]
    whole = ["resolve", "download", "calibrate", "select", "solve", "fold", "save", "publish"]
    names = [span.name.removeprefix("stage ") for span in stages]
    assert names == (whole[:3] if ends == "failed" else whole)
    assert {span.parent for span in stages} == {attempt.id}
    assert all(attempt.began <= span.began <= span.ended <= attempt.ended for span in stages)


def test_another_worker_goes_on_at_once(server_site: Site) -> None:
    site = server_site
    site.extra = {"REPLACEME_DRAIN_SECONDS": "1", "REPLACEME_MAX_ATTEMPTS": "1", "REPLACEME_SWEEP_SECONDS": "3600"}
    workers = [site.start_worker(name=name) for name in ("w1", "w2")]
    job_id = site.add(enqueue=False, stub_child="yes")
    set_gate(site.data, job_id, "calibrate")  # for the first runner
    site.enqueue(job_id)
    runner = site.wait_for_runner(job_id)
    at_work = int(str(site.job(job_id).worker).rpartition(":")[2])
    workers.sort(key=lambda worker: at_work not in [child.pid for child in worker.children()])
    first, second = workers
    assert first.stop() == 0
    assert not runner.is_running()
    # no sweep runs: the worker that shut down has sent the message
    job = site.wait_for_end(job_id)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.attempt == 2, "although one attempt is all it has"
    assert site.event_types(job_id).count("released") == 1
    claims = [event.data["worker"] for event in events_of(site.database, job_id) if event.type == "claimed"]
    assert len(set(claims)) == 2
    assert len(site.publications()) == 1
    assert site.runners() == []
    site.wait_for_empty_workspace()
    assert second.process.poll() is None


def test_within_the_grace_jobs_are_finished_or_cancelled_and_none_begins(embedded_site: Site) -> None:
    site = embedded_site
    site.extra = {"REPLACEME_DRAIN_SECONDS": "600", "REPLACEME_LOG_FORMAT": "text"}
    worker = site.start_worker(concurrency=2)
    job_id, cancelled_id = site.add(enqueue=False), site.add(enqueue=False, stub_seconds="600")
    set_gate(site.data, job_id, "calibrate")
    for each in (job_id, cancelled_id):
        site.enqueue(each)
    wait_until(lambda: is_held(site.data, job_id, "calibrate"), what="a runner at the gate")
    site.wait_for_runner(cancelled_id)
    next_id = site.add()
    worker.process.terminate()
    wait_until(lambda: "Warm shutdown" in worker.log.read_text(), what="the signal")
    site.cancel(cancelled_id)
    assert site.wait_for_end(cancelled_id).status is JobStatus.CANCELLED
    open_gates(site.data)
    assert worker.process.wait(timeout=WAIT_SECONDS) == 0, "it does not wait when there is nothing left to do"
    job = site.job(job_id)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 1)
    assert site.job(next_id).status is JobStatus.QUEUED, "no new job"
    text = worker.log.read_text()  # as text, as the setting says
    assert f"job {cancelled_id}: attempt 1 has ended: cancelled" in text
    assert f"job_id={cancelled_id}" in text
    assert not any(line.startswith("{") for line in text.splitlines())


@pytest.mark.parametrize(
    ("pool", "how", "drain_seconds"),
    [
        ("solo", signal.SIGTERM, 0.5),
        ("threads", signal.SIGTERM, 0.5),
        ("prefork", signal.SIGHUP, 0.5),
        ("prefork", signal.SIGQUIT, 60),
    ],
)
def test_a_job_is_released_after_the_grace_and_at_sigquit_without(
    embedded_site: Site, pool: str, how: signal.Signals, drain_seconds: float
) -> None:
    """In every pool; the attempt does not count."""
    site = embedded_site
    site.extra = {"REPLACEME_DRAIN_SECONDS": str(drain_seconds), "REPLACEME_MAX_ATTEMPTS": "1"}
    worker = site.start_worker(pool=pool)
    job_id = site.add(stub_seconds="600")
    site.wait_for_runner(job_id)
    worker.process.send_signal(how)
    worker.process.wait(timeout=WAIT_SECONDS)
    assert site.job(job_id).status is JobStatus.QUEUED
    assert site.event_types(job_id)[-1] == "released"
    claim = Ledger(site.database).claim(job_id)
    assert (claim.attempt, claim.counted) == (2, 1)
    assert site.runners() == []
    assert site.workspaces() == []


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []


def test_nothing_is_left_in_the_systems_directory(embedded_site: Site, tmp_path: Path) -> None:
    site, system = embedded_site, tmp_path / "system"
    ours = site.settings.workspace / TEMPORARY  # the data directory itself need not be writable
    system.mkdir()
    site.extra = {"TMPDIR": str(system)}
    worker = site.start_worker(name="w1")
    assert site.wait_for_end(site.add()).status is JobStatus.SUCCEEDED
    held = names_in(ours)
    assert len(held) == 2, "a directory and its lock"
    worker.kill_tree()
    assert names_in(ours) == held
    other = site.start_worker(name="w2")
    wait_until(lambda: not set(held) & set(names_in(ours)), what="a sweep takes away what was left")
    assert site.wait_for_end(site.add()).status is JobStatus.SUCCEEDED
    assert other.stop() == 0
    assert names_in(ours) == []
    assert names_in(system) == []
