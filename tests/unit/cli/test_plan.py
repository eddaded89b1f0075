"""`replaceme plan`: the options of `submit`, a table for people, and an exit code."""

import inspect
import json

import pytest
from typer.testing import CliRunner

from api.cli.jobs import plan, submit
from api.cli.main import app
from tests.fixtures.cli.stub_service import stub_service

ESTIMATE: dict[str, object] = {
    "method": "auto",
    "loading": "whole",
    "dtype": "float32",
    "samples": 64,
    "max_length": 512,
    "blocks": {"before": 30, "after": 22, "removed": "8 of 30"},
    "parameters": {"before": 134_515_008, "after": 106_194_240},
    "bytes": {"download": 272_584_997, "write": 215_935_223, "disk": 431_870_446},
    "memory": {"host_bytes": 6_200_000_000, "gpu_bytes": 0},
    "time": {"seconds": 750.0, "basis": "model", "jobs": 0},
    "stages": [{"stage": "calibrate", "seconds": 81.0, "host_bytes": 6_200_000_000, "gpu_bytes": 0}],
}
PLAN: dict[str, object] = {
    "model": {"repo_id": "org/name", "revision": "a" * 40, "family": "llama", "supported": True, "methods": ["auto"]},
    "estimate": ESTIMATE,
    "worker": {"route": None, "estimated_for": "cpu", "alive": True},
    "warnings": [{"code": "gated", "message": "org/name is gated", "field": "model"}],
    "refusals": [],
}
ARGUMENTS = ["--model", "org/name", "--ratio", "0.25", "--calibration", "builtin:general", "--method", "auto"]


def test_it_takes_the_options_of_submit_that_describe_a_job() -> None:
    own = {"url", "api_key", "as_json"}
    not_of_a_job = {"idempotency_key", "wait", "timeout", "cancel_on_interrupt", "validate_only", "junit"}
    not_of_a_job |= {"webhook", "webhook_event", "webhook_payload", "webhook_signed_by"}
    ours, theirs = (set(inspect.signature(each).parameters) for each in (plan, submit))
    assert ours - own == theirs - own - not_of_a_job


@pytest.mark.parametrize("refused", [False, True])
def test_a_plan_for_people(refused: bool) -> None:
    refusals = [{"code": "does_not_fit", "message": "it needs 7 bytes", "field": "model"}] if refused else []
    with stub_service() as service:
        service.answers["POST /plans"] = [(200, {**PLAN, "refusals": refusals})]
        found = CliRunner().invoke(app, ["plan", "--url", service.url, *ARGUMENTS])
    assert found.exit_code == (2 if refused else 0), found.output
    for text in ("8 of 30 blocks", "134,515,008 -> 106,194,240", "6.20 GB", "any (estimated for cpu), alive", "gated"):
        assert text in found.stdout
    assert ("refused: it needs 7 bytes" in found.stdout) == refused
    body = {"model": {"repo_id": "org/name"}, "ratio": 0.25, "calibration": {"dataset": "builtin:general"}}
    assert service.received == [("POST /plans", {**body, "method": {"name": "auto"}})]


def test_a_plan_for_the_deepest_cut() -> None:
    with stub_service() as service:
        estimate = {**ESTIMATE, "trials": {"at_most": 4, "seconds": 600.0}}
        service.answers["POST /plans"] = [(200, {**PLAN, "estimate": estimate})]
        deepest = ["--ratio", "max:0.5", "--gate", "perplexity_ratio<=1.6"]
        found = CliRunner().invoke(app, ["plan", "--url", service.url, *ARGUMENTS, *deepest])
    assert found.exit_code == 0, found.output
    assert "at most 8 of 30 blocks" in found.stdout
    assert "at most 4, about 10 minutes for all" in found.stdout
    ((_, body),) = service.received
    assert isinstance(body, dict)
    assert body["ratio"] == {"max": 0.5}


def test_a_plan_as_json() -> None:
    with stub_service() as service:
        service.answers["POST /plans"] = [(200, PLAN)]
        found = CliRunner().invoke(app, ["plan", "--url", service.url, "--json", *ARGUMENTS])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["estimate"]["blocks"] == ESTIMATE["blocks"]
