"""Every figure on the page and in the card of a finished job is the one in the database."""

import json
import urllib.request

import pytest
import torch
from huggingface_hub import ModelCard

from api.client.client import Client
from benchmarks.harness.jobs import owner_of
from benchmarks.harness.site import Site
from replaceme_core.ledger import reading
from replaceme_core.runner.process import RUNNER_COMMAND
from tests.fixtures.models.tiny import save_tiny
from tests.fixtures.reports.card import card_differences
from tests.fixtures.reports.shown import differences, read_page

BODY: dict[str, object] = {
    "model": "acme/real",
    "ratio": 0.34,
    "calibration": {"dataset": "builtin:pydoc-topics", "samples": 16, "max_length": 32},
    "method": "least_squares",
    "compute": {"device": "cpu", "dtype": "float32", "batch_size": 4, "threads": 1},
    "gate": {"perplexity_ratio": {"max": 1000}, "size_ratio": {"max": 0.95}},
    "output": "acme/result",
}


def page_of(url: str, job_id: str) -> str:
    """The page that the API gives."""
    request = urllib.request.Request(f"{url}/jobs/{job_id}/report", headers={"Accept": "text/html"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(response.read().decode())


def test_page_and_card_show_what_the_database_has(embedded_site: Site) -> None:
    save_tiny(embedded_site.hub_directory / "acme" / "real", dtype=torch.bfloat16)
    embedded_site.extra["REPLACEME_RUNNER_COMMAND"] = json.dumps(RUNNER_COMMAND)
    embedded_site.start_worker()
    url = embedded_site.start_api().url
    assert url is not None
    with Client(url) as client:
        job = client.wait(client.submit(BODY).id, timeout=180)
    assert job.status == "succeeded", job.error
    with embedded_site.database.session(read_only=True) as session:
        stored = reading.report(session, job.id, owner=owner_of(session, job.id))
        metrics = {
            (one.stage, one.name, one.candidate): one.value
            for one in reading.metrics(session, job.id, owner=owner_of(session, job.id))
        }
    published = embedded_site.hub_directory / "acme" / "result"

    for html in (page_of(url, job.id), (published / "report.html").read_text()):
        page = read_page(html)
        assert differences(page, stored) == []
        assert len(page.shown) > 100
        assert json.loads(page.code["#/spec"]) == stored["spec"]
    assert card_differences(ModelCard.load(published / "README.md"), stored) == []

    # the other place where the database has them: metrics
    for side in ("before", "after"):
        measured = stored[side]
        assert isinstance(measured, dict)
        for name in ("perplexity", "parameters", "bytes", "blocks", "word_perplexity", "byte_perplexity"):
            assert metrics["evaluate", f"{side}.{name}", None] == pytest.approx(measured[name], rel=1e-15)
    stages = stored["stages"]
    assert isinstance(stages, list) and len(stages) == 6
    for stage in stages:
        assert metrics[stage["name"], "seconds", None] == stage["seconds"]
        assert metrics[stage["name"], "peak_memory", None] == stage["peak_bytes"]
