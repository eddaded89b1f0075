"""Jobs through a real `celery worker`, a real broker and a real database; only the pipeline is a stub."""

import json
import time

from benchmarks.harness.jobs import owner_of
from benchmarks.harness.processes import wait_until
from benchmarks.harness.site import SECRET, Site
from replaceme_core.ledger import reading
from replaceme_core.ledger.states import JobStatus
from replaceme_core.plan.duration import MODELLED
from replaceme_core.runner.messages import Stage


def test_a_job_runs_from_message_to_publication(site: Site) -> None:
    site.start_worker()
    job_id = site.add()
    job = site.wait_for_end(job_id)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.attempt == 1
    assert job.overall == 1
    assert job.result is not None
    assert job.result.removed_blocks == (2,)
    assert job.result.kept_blocks == (0, 1, 3)
    assert job.spec.compute.device == "cpu"
    assert job.spec.model.revision is not None
    assert len(job.spec.model.revision) == 40
    [commit] = site.publications()
    assert commit["revision"] == job.result.revision
    assert commit["trailer"] == f"ReplaceMe-Job: {job_id}"
    assert (site.hub_directory / "acme" / "smaller" / "model.safetensors").read_bytes() == b"weights"
    with site.database.session(read_only=True) as session:
        metrics = reading.metrics(session, job_id, owner=owner_of(session, job_id))
        report = reading.report(session, job_id, owner=owner_of(session, job_id))
        stages = [
            event.data["stage"]
            for event in reading.events(session, job_id, owner=owner_of(session, job_id)).items
            if event.type == "stage"
        ]
    found = [(metric.name, metric.value, metric.stage) for metric in metrics if metric.name != MODELLED]
    assert found == [("tokens", 512.0, Stage.CALIBRATE)]
    assert [metric.stage for metric in metrics if metric.name == MODELLED] == [Stage.DOWNLOAD, Stage.PUBLISH]
    assert report["loss"] == "nan"
    assert str(report["cache_directory"]).endswith("/cache/statistics")
    assert report["hub"] is None, "a directory has no pages to link to"
    assert stages == ["resolve", "download", "calibrate", "select", "solve", "fold", "save", "publish"]
    assert site.workspaces() == []
    assert site.runners() == []


def test_no_secret_reaches_the_runner(embedded_site: Site) -> None:
    worker = embedded_site.start_worker()
    job_id = embedded_site.add()
    assert embedded_site.wait_for_end(job_id).status is JobStatus.SUCCEEDED
    with embedded_site.database.session(read_only=True) as session:
        environment = reading.report(session, job_id, owner=owner_of(session, job_id))["environment"]
    assert isinstance(environment, list)
    names = {str(entry).partition("=")[0] for entry in environment}
    assert not {name for name in names if name.startswith("REPLACEME_") or "TOKEN" in name.removesuffix("_TOKEN_")} - {
        "HF_HUB_DISABLE_IMPLICIT_TOKEN",
        "TOKENIZERS_PARALLELISM",
    }
    assert SECRET not in json.dumps(environment)
    assert {"HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1"} <= set(environment)
    assert SECRET not in worker.log.read_text()


def test_doubled_messages_run_once(site: Site) -> None:
    site.start_worker(concurrency=2, pool="threads")
    job_id = site.add(enqueue=False, stub_seconds="1")
    for _ in range(4):
        site.enqueue(job_id)
    job = site.wait_for_end(job_id)
    assert job.status is JobStatus.SUCCEEDED
    last = site.add()  # behind all of the doubles
    assert site.wait_for_end(last).status is JobStatus.SUCCEEDED
    assert site.job(job_id).attempt == 1
    assert site.event_types(job_id).count("claimed") == 1
    assert len(site.publications()) == 2


def test_a_message_for_a_job_that_is_taken_serves_another(site: Site) -> None:
    site.extra = {"REPLACEME_SWEEP_SECONDS": "3600"}  # messages alone
    first, second = site.add(enqueue=False), site.add(enqueue=False)
    site.enqueue(first)
    site.enqueue(first)
    site.start_worker()
    for job_id in (first, second):
        assert site.wait_for_end(job_id).status is JobStatus.SUCCEEDED
        assert site.job(job_id).attempt == 1


def test_jobs_are_scheduled_whatever_the_order_of_messages(site: Site) -> None:
    many = [site.add(owner="ada") for _ in range(3)]
    one = site.add(owner="bob")
    urgent = site.add(owner="ada", priority=9)
    site.start_worker()
    jobs = [site.wait_for_end(job_id) for job_id in (urgent, one, *many)]
    starts = [job.started_at for job in jobs if job.started_at is not None]
    assert starts == sorted(starts)
    assert len(starts) == 5


def test_cancel_ends_a_running_job_within_five_seconds(site: Site) -> None:
    site.start_worker()
    job_id = site.add(stub_seconds="60", stub_child="yes")
    site.wait_for_runner(job_id)
    began = time.monotonic()
    site.cancel(job_id)
    job = site.wait_for_end(job_id, seconds=10)
    assert time.monotonic() - began < 5
    assert job.status is JobStatus.CANCELLED
    assert job.result is None
    assert site.runners() == []
    assert site.workspaces() == []
    assert site.publications() == []
    assert not (site.hub_directory / "acme" / "smaller").exists()


def test_a_job_that_runs_too_long_is_ended(site: Site) -> None:
    site.start_worker()
    job_id = site.add(stub_seconds="60", stub_child="yes", max_runtime_seconds=15)
    runner = site.wait_for_runner(job_id)
    job = site.wait_for_end(job_id, seconds=40)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "out_of_time"
    assert job.started_at is not None and job.finished_at is not None
    assert 15 <= (job.finished_at - job.started_at).total_seconds() < 30
    assert not runner.is_running()
    assert site.runners() == []
    assert site.workspaces() == []
    assert site.publications() == []


def test_a_job_that_waits_too_long_never_starts(site: Site) -> None:
    site.start_worker()
    busy = site.add(stub_seconds="60")
    site.wait_for_runner(busy)
    late = site.add(max_queue_seconds=1)
    job = site.wait_for_end(late, seconds=10)
    assert job.error is not None
    assert (job.error.code, job.attempt, job.started_at) == ("out_of_time", 0, None)
    assert site.event_types(late) == ["created", "failed"]
    site.cancel(busy)
    site.wait_for_end(busy)
    assert site.job(late) == job


def test_a_runner_that_ignores_sigterm_is_killed_in_time(embedded_site: Site) -> None:
    site = embedded_site
    site.start_worker(pool="solo")
    job_id = site.add(stub_seconds="60", stub_stubborn="yes")
    site.wait_for_runner(job_id)
    began = time.monotonic()
    site.cancel(job_id)
    assert site.wait_for_end(job_id, seconds=10).status is JobStatus.CANCELLED
    assert time.monotonic() - began < 5
    assert site.runners() == []
    assert site.workspaces() == []


def test_progress_is_seen_while_the_job_runs(embedded_site: Site) -> None:
    site = embedded_site
    site.start_worker(pool="threads")
    job_id = site.add(stub_seconds="8")
    site.wait_for_runner(job_id)
    wait_until(lambda: site.job(job_id).eta_seconds is not None, seconds=10, what="an estimate")
    first = site.job(job_id)
    assert first.stage is Stage.CALIBRATE
    assert 0 < first.overall < 1
    wait_until(lambda: site.job(job_id).overall > first.overall, seconds=5, what="progress")
    site.cancel(job_id)
    site.wait_for_end(job_id)


def test_each_failure_has_its_code(embedded_site: Site) -> None:
    site = embedded_site
    site.start_worker(pool="threads", concurrency=2)
    expected = {
        "space": ("out_of_space", "no space left"),
        "memory": ("out_of_memory", "9 TB could not be allocated"),
        "input": ("calibration_too_small", "the text has 12 tokens, 1024 are needed"),
        "bug": ("internal_error", "KeyError"),
        "exit": ("internal_error", "exit status 3"),
    }
    jobs = {how: site.add(stub_fail=how) for how in expected}
    for how, (code, text) in expected.items():
        job = site.wait_for_end(jobs[how])
        assert job.status is JobStatus.FAILED
        assert job.error is not None
        assert job.error.code == code
        assert text in job.error.message
    assert site.publications() == []
    assert site.workspaces() == []


def test_a_model_that_went_bad_after_the_request_fails_with_the_reason(embedded_site: Site) -> None:
    site = embedded_site
    job_id = site.add()
    config = site.hub_directory / "acme" / "tiny" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": {"AutoModel": "evil.Model"}}))
    site.start_worker()
    job = site.wait_for_end(job_id)
    assert job.error is not None
    assert job.error.code == "unsafe_model"
