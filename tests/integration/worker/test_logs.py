"""One request can be followed through the logs of the API, the worker and the runner."""

import json

import httpx2
import pytest

from benchmarks.harness.processes import Started
from benchmarks.harness.site import MODEL, Site
from replaceme_core.ledger.states import JobStatus

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SENT = {"x-request-id": "build-17", "traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}
BODY = {"model": MODEL, "ratio": 0.25, "calibration": "builtin:pydoc-topics", "evaluation": {"enabled": False}}


def lines_of(started: Started) -> list[dict[str, object]]:
    """The log, of which each line is an object, apart from what Celery prints before it begins to log."""
    return [json.loads(line) for line in started.log.read_text().splitlines() if line.startswith("{")]


def about(lines: list[dict[str, object]], **names: object) -> list[dict[str, object]]:
    return [line for line in lines if names.items() <= line.items()]


@pytest.mark.parametrize("failure", [None, "space"])
def test_the_ids_of_a_request_reach_the_runner(site: Site, failure: str | None) -> None:
    worker, api = site.start_worker(), site.start_api()
    assert api.url is not None
    labels = {} if failure is None else {"stub.fail": failure}
    answer = httpx2.post(f"{api.url}/jobs", json={**BODY, "labels": labels, "output": "acme/smaller"}, headers=SENT)
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["id"]
    status = site.wait_for_end(job_id).status
    assert status is (JobStatus.SUCCEEDED if failure is None else JobStatus.FAILED)
    worker.stop()
    ids = {"request_id": "build-17", "trace_id": TRACE_ID}
    (accepted,) = about(lines_of(api), event="job accepted", **ids)
    assert accepted["job_id"] == job_id
    (request,) = about(lines_of(api), event="request", path="/jobs", method="POST", **ids)
    assert (request["status"], request["service"]) == (202, "api")
    of_attempt = about(lines_of(worker), job_id=job_id, attempt=1, service="worker", **ids)
    assert about(of_attempt, event="a library writes something on standard output", logger="runner")
    (end,) = [line for line in of_attempt if "outcome" in line]
    if failure is None:
        assert (end["outcome"], end["level"], end["repo_id"]) == ("succeeded", "info", "acme/smaller")
    else:
        assert (end["outcome"], end["level"], end["code"]) == ("failed", "error", "out_of_space")
        assert "no space left" in str(end["event"])


def test_a_setting_makes_the_log_text(embedded_site: Site) -> None:
    embedded_site.extra["REPLACEME_LOG_FORMAT"] = "text"
    worker = embedded_site.start_worker()
    job_id = embedded_site.add(stub_seconds="30")
    embedded_site.wait_for_runner(job_id)
    embedded_site.cancel(job_id)
    embedded_site.wait_for_end(job_id)
    worker.stop()
    text = worker.log.read_text()
    assert f"job {job_id}: attempt 1 has ended: cancelled" in text
    assert f"job_id={job_id}" in text
    assert not any(line.startswith("{") for line in text.splitlines())
