"""The commands about one job, against a server with canned responses: what is sent, printed and returned."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.cli.main import COMMANDS, app
from tests.fixtures.cli.stub_service import JOB_ID, StubService, a_job, a_problem, run_at

AT = "2026-11-25T00:00:00Z"
NEW_ID = "3f2b8c52-0000-4000-8000-000000000009"
CHANGE = {"before": 30, "after": 22}
SUMMARY = {"blocks": CHANGE, "parameters": CHANGE, "perplexity": {"before": 30.5, "after": 61.0}}
DONE = {"overall": 1.0, "stage": 1.0, "eta_seconds": None}
REPORT = {
    "removed_blocks": [2, 3],
    "kept_blocks": [0, 1, 4],
    "before": {"blocks": 5, "perplexity": 20.0},
    "after": {"blocks": 3, "perplexity": 30.0},
    "candidates": [{"start": 2, "end": 3, "distance": 0.1, "residual": 0.2, "held_out_loss": 3.5, "chosen": True}],
}


def test_the_summary_is_printed_at_the_end(service: StubService) -> None:
    service.answers["POST /jobs"] = [(202, a_job())]
    service.answers[f"GET /jobs/{JOB_ID}"] = [(200, a_job(status="succeeded", progress=DONE, summary=SUMMARY))]
    wanted = ("--model", "org/name", "--ratio", "0.25", "--calibration", "builtin:general", "--wait")
    done = run_at(service, "submit", *wanted)
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["Perplexity", "30.50", "61.00", "+100.0", "%"] in lines
    assert ["Blocks", "30", "22", "-26.7", "%"] in lines
    done = run_at(service, "submit", *wanted, "--json")
    assert json.loads(done.stdout)["summary"]["perplexity"] == SUMMARY["perplexity"]


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_the_command_line_only(argument: str) -> None:
    """Each library costs part of the time until help is there, and it must be there at once."""
    program = "import atexit, sys; from api.cli.main import main; atexit.register(lambda: print(*sys.modules)); main()"
    done = subprocess.run(
        [sys.executable, "-c", program, argument], capture_output=True, text=True, timeout=60, check=True
    )
    shown, _, modules = done.stdout.rstrip("\n").rpartition("\n")
    loaded = set(modules.split())
    assert {name for name in loaded if name.startswith(("api.", "replaceme_core"))} == {"api.cli", "api.cli.main"}
    unwanted = {"pydantic", "httpx2", "yaml", "sqlalchemy", "celery", "structlog", "huggingface_hub", "asyncio"}
    assert {name.partition(".")[0] for name in loaded} & unwanted == set()
    assert {name.partition(".")[0] for name in loaded} >= {"typer"}
    if argument == "--version":
        assert shown == f"replaceme {version('replaceme')}"
    else:
        assert [name for name in COMMANDS if f" {name} " not in shown] == []
        assert all(panel in shown for panel, _, _ in COMMANDS.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str) -> None:
    done = CliRunner().invoke(app, [name, "--help"])
    assert done.exit_code == 0, done.output
    _, _, sentence = COMMANDS[name]
    assert sentence in " ".join(done.stdout.split())


@pytest.mark.parametrize("name", ["submit", "plan", "compress"])
def test_the_help_shows_options_in_groups_and_whole(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"]).stdout
    for panel in ("Model and blocks to remove", "Calibration text", "Method", "Evaluation", "Gate", "Computation"):
        assert f"─ {panel} ─" in shown
    assert " --evaluation-samples " in shown
    assert "perplexity_ratio<=1.6," in shown


def test_retry(service: StubService) -> None:
    service.answers[f"POST /jobs/{JOB_ID}/retry"] = [(202, a_job(id=NEW_ID, retry_of=JOB_ID))]
    done = run_at(service, "retry", JOB_ID, "--idempotency-key", "again")
    assert done.exit_code == 0, done.output
    assert NEW_ID in done.stdout
    assert JOB_ID in done.stdout
    assert service.keys == ["again"]
    service.answers[f"GET /jobs/{NEW_ID}"] = [(200, a_job(id=NEW_ID, status="failed", progress=DONE))]
    assert run_at(service, "retry", JOB_ID, "--wait").exit_code == 3


@pytest.mark.parametrize(
    ("name", "said"), [(f"acme/tiny-3of4-{NEW_ID[:8]}", "a new repository"), ("acme/mine", "as that of the job")]
)
def test_retry_says_where_the_result_goes(service: StubService, name: str, said: str) -> None:
    job = a_job(id=NEW_ID, retry_of=JOB_ID, spec={"output": {"repo_id": name}})
    service.answers[f"POST /jobs/{JOB_ID}/retry"] = [(202, job)]
    done = run_at(service, "retry", JOB_ID, "--json")
    assert f"the result goes to {name}, {said}" in done.stderr
    assert json.loads(done.stdout)["id"] == NEW_ID


def test_delete(service: StubService) -> None:
    service.answers[f"DELETE /jobs/{JOB_ID}"] = [(204, b"")]
    done = run_at(service, "delete", JOB_ID)
    assert (done.exit_code, done.stdout) == (0, "")
    assert json.loads(run_at(service, "delete", JOB_ID, "--json").stdout) == {"deleted": [JOB_ID]}
    service.answers[f"DELETE /jobs/{JOB_ID}"] = [(409, a_problem(409))]
    assert run_at(service, "delete", JOB_ID).exit_code == 2


def test_report_of_a_job_and_of_a_directory(service: StubService, tmp_path: Path) -> None:
    service.answers[f"GET /jobs/{JOB_ID}/report"] = [(200, REPORT)]
    (tmp_path / "replaceme.json").write_text(json.dumps(REPORT))
    of_job, of_directory = run_at(service, "report", JOB_ID), run_at(service, "report", str(tmp_path))
    assert of_job.exit_code == of_directory.exit_code == 0, of_job.output
    assert of_job.stdout == of_directory.stdout
    assert "removed 2 of 5 blocks: 2-3" in of_job.stdout
    assert "+50.0 %" in of_job.stdout
    assert json.loads(run_at(service, "report", JOB_ID, "--json").stdout) == REPORT
    (tmp_path / "replaceme.json").write_text("[]")
    assert run_at(service, "report", str(tmp_path)).exit_code == 2
    assert "has no replaceme.json" in run_at(service, "report", str(tmp_path.parent)).stderr


def test_metrics(service: StubService) -> None:
    common = {"stage": "select", "at": AT}
    items = [
        {**common, "name": "held_out_loss", "block": None, "candidate": "2-3", "value": "NaN", "unit": "nats"},
        {**common, "name": "influence", "block": 4, "candidate": None, "value": 0.5, "unit": "ratio"},
    ]
    service.answers[f"GET /jobs/{JOB_ID}/metrics"] = [(200, {"items": items, "next_cursor": None})]
    lines = [line.split() for line in run_at(service, "metrics", JOB_ID).stdout.splitlines()]
    assert ["select", "held_out_loss", "2-3", "nan", "nats"] in lines
    assert ["select", "influence", "block", "4", "0.5", "ratio"] in lines
    shown = json.loads(run_at(service, "metrics", JOB_ID, "--json").stdout)["items"]
    assert [one["value"] for one in shown] == ["NaN", 0.5]


def line(number: int) -> dict[str, object]:
    return {"number": number, "at": AT, "attempt": 1, "text": f"line {number}"}


def test_logs_read_all_pages(service: StubService) -> None:
    service.answers[f"GET /jobs/{JOB_ID}/logs"] = [
        (200, {"items": [line(1), line(2)], "next_cursor": "2"}),
        (200, {"items": [line(3)], "next_cursor": None}),
    ]
    done = run_at(service, "logs", JOB_ID)
    assert [each.rpartition("  ")[2] for each in done.stdout.splitlines()] == ["line 1", "line 2", "line 3"]
    assert service.received[1][0] == f"GET /jobs/{JOB_ID}/logs?after=2"


def test_logs_are_followed_to_the_end(service: StubService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.client.client.POLL_SECONDS", 0.0)
    service.answers[f"GET /jobs/{JOB_ID}"] = [(200, a_job(status="running")), (200, a_job(status="failed"))]
    pages = [[line(1)], [line(2)]]
    service.answers[f"GET /jobs/{JOB_ID}/logs"] = [(200, {"items": page, "next_cursor": None}) for page in pages]
    done = run_at(service, "logs", JOB_ID, "--follow", "--json")
    assert [one["number"] for one in json.loads(done.stdout)["items"]] == [1, 2]
    assert len(done.stderr.splitlines()) == 2


def test_workers(service: StubService) -> None:
    worker = {"name": "w1@host", "host": "host", "kinds": ["cpu"], "device": "cpu", "sandbox": "full"}
    worker |= {"started_at": AT, "heartbeat_at": AT, "alive": True, "busy": True, "jobs": [JOB_ID]}
    items = [worker, {**worker, "name": "w2@host", "alive": False}]
    service.answers["GET /workers"] = [(200, {"items": items, "next_cursor": None})]
    done = run_at(service, "workers")
    states = [each.split()[:4] for each in done.stdout.splitlines() if "@host" in each]
    assert states == [["w1@host", "cpu", "cpu", "busy"], ["w2@host", "cpu", "cpu", "lost"]]
    assert json.loads(run_at(service, "workers", "--json").stdout)["items"][0]["jobs"] == [JOB_ID]


def test_cancel_all_that_match(service: StubService) -> None:
    one = {"id": JOB_ID, "status": "cancelled"}
    service.answers["POST /jobs/cancel"] = [(200, {"items": [one], "more": True}), (200, {"items": [], "more": False})]
    done = run_at(service, "cancel", "--label", "team=nlp", "--status", "queued", "--created-before", "2026-11-27")
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [JOB_ID, "cancelled"]
    assert done.stderr == "cancelled or being stopped: 1 job\n"
    (first, body), second = service.received
    assert (first, body) == second
    assert isinstance(body, dict)
    assert body.pop("created_before").startswith("2026-11-27T00:00:00")
    assert body == {"labels": {"team": "nlp"}, "status": ["queued"]}
    for arguments in ((), (JOB_ID, "--all")):
        assert run_at(service, "cancel", *arguments).exit_code == 2
    assert len(service.received) == 2


def test_list_filters(service: StubService) -> None:
    service.answers["GET /jobs"] = [(200, {"items": [a_job()], "next_cursor": None})]
    done = run_at(
        service, "list", "--status", "failed", "--status", "queued", "--model", "org/name", "--sort", "created_at"
    )
    assert done.exit_code == 0, done.output
    assert service.received[0][0] == "GET /jobs?status=failed&status=queued&model=org%2Fname&sort=created_at"


def test_an_error_is_printed_once(service: StubService) -> None:
    entry = {"field": "model", "value": "x", "message": "there is no such model"}
    service.answers[f"GET /jobs/{JOB_ID}"] = [(422, a_problem(422, detail="there is no such model", errors=[entry]))]
    done = run_at(service, "status", JOB_ID)
    assert done.stderr == "error: model: there is no such model\n"
    service.answers[f"GET /jobs/{JOB_ID}"] = [(404, a_problem(404))]
    assert run_at(service, "status", JOB_ID).stderr == "error: what happened\n"
