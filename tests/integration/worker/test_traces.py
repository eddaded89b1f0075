"""One trace from the request through the message and the database to the attempt and its stages."""

import httpx2
import pytest

from benchmarks.harness.site import MODEL, SECRET, Site
from replaceme_core.ledger.states import JobStatus
from tests.fixtures.service.otlp import ReceivedSpan, collector

TRACE_ID, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
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


@pytest.mark.parametrize("failure", [None, "space"])
def test_the_trace_of_a_job(site: Site, failure: str | None) -> None:
    with collector() as there:
        site.extra["OTEL_EXPORTER_OTLP_ENDPOINT"] = there.url
        worker, api = site.start_worker(), site.start_api()
        assert api.url is not None
        labels = {"planted": "in-a-label"} | ({} if failure is None else {"stub.fail": failure})
        answer = httpx2.post(
            f"{api.url}/jobs?",
            json={**BODY, "labels": labels, "output": "acme/smaller"},
            headers={"traceparent": f"00-{TRACE_ID}-{CALLER}-01", "x-request-id": "planted-id"},
        )
        assert answer.status_code == 202, answer.text
        job_id = answer.json()["id"]
        assert httpx2.get(f"{api.url}/jobs", params={"label": "planted=in-a-query"}).status_code == 200
        assert httpx2.get(f"{api.url}/health").status_code == 200
        ended = site.wait_for_end(job_id).status
        assert ended is (JobStatus.SUCCEEDED if failure is None else JobStatus.FAILED)
        worker.stop()
        api.stop()
        spans, raw = there.spans(), b"".join(there.raw)
    in_trace = [span for span in spans if span.trace == TRACE_ID]
    request, sent, attempt = (only(in_trace, name) for name in ("POST /jobs", "send replaceme", "attempt"))
    assert (request.service, request.kind, request.parent) == ("replaceme-api", SERVER, CALLER)
    assert answer.headers["traceparent"] == f"00-{TRACE_ID}-{request.id}-01"
    assert (sent.service, sent.kind, sent.parent) == ("replaceme-api", PRODUCER, request.id)
    assert (attempt.service, attempt.kind, attempt.parent) == ("replaceme-worker", CONSUMER, request.id)
    assert attempt.links == (sent.id,), "the message that woke the worker up"
    assert attempt.attributes["replaceme.job.id"] == job_id
    assert attempt.attributes["replaceme.outcome"] == ended.value
    assert attempt.failed is (failure is not None)
    assert attempt.attributes.get("error.type") == (None if failure is None else "out_of_space")
    stages = [span for span in in_trace if span.name.startswith("stage ")]
    names = [span.name.removeprefix("stage ") for span in stages]
    whole = ["resolve", "download", "calibrate", "select", "solve", "fold", "save", "publish"]
    assert names == (whole if failure is None else whole[:3])
    assert {span.parent for span in stages} == {attempt.id}
    assert all(attempt.began <= span.began <= span.ended <= attempt.ended for span in stages)
    others = {span.trace for span in spans if span.name == "GET /jobs"}
    assert others
    assert TRACE_ID not in others
    assert {name for span in spans for name in span.attributes} <= KNOWN
    for planted in (SECRET, "in-a-label", "in-a-query", "planted-id", "acme", "/health"):
        assert planted.encode() not in raw
