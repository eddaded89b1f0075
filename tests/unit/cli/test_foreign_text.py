"""What every command makes of text of strangers: text, on the line where it belongs."""

import json
import re
from pathlib import Path

import pytest

from replaceme_core.wording import printable
from tests.fixtures.cli.stub_service import JOB_ID, StubService, a_job, a_problem, run_at
from tests.fixtures.hostile.texts import TEXTS
from tests.fixtures.reports.shown import SMALL

SENT = "  ".join(text for name, text in TEXTS.items() if name != "half a character")
"""All at once. No service can send the one that is left out."""
AT = "2026-11-25T00:00:00Z"
JOB = ("--model", "org/name", "--ratio", "0.25", "--calibration", "builtin:general")


def answers(text: str) -> dict[str, object]:
    """Of a service that has `text` wherever a stranger may have put it, by request."""
    warning = {"code": "x", "message": text, "field": "model"}
    job = a_job(
        status="failed",
        labels={text: text},
        spec={"model": {"repo_id": text}, "calibration": {"sources": [{"dataset": text, "share": 0.5}]}},
        error={"code": text, "message": text},
        result={"repo_id": text, "revision": text, "removed_blocks": [1], "kept_blocks": [0], "warnings": [warning]},
        gate={"passed": False, "criteria": [{"name": text, "value": 1, "min": None, "max": 2, "passed": True}]},
    )
    worker = {"name": text, "host": text, "kinds": [text], "device": text, "sandbox": text}
    worker |= {"started_at": AT, "heartbeat_at": AT, "alive": True, "busy": True, "jobs": []}
    metric = {"name": text, "stage": text, "block": None, "candidate": text, "value": 1.0, "unit": text, "at": AT}
    side = {"blocks": 2, "perplexity": 2.0, "speed": None}
    row = {"start": 1, "end": 2, "held_out_loss": 3.0, "chosen": True, "source_losses": {text: 1.0, f"{text}.": 2.0}}
    report = {
        **{name: value for name, value in SMALL.items() if name != "layers"},
        "answers": [{"prompt": text, "before": text, "after": text}],
        "texts": [{"name": text, "before": 1.0, "after": 2.0}],
        "tasks": [{"name": text, "before": {"accuracy": 0.5}, "after": {"accuracy": 0.5}}],
        "candidates": [row],
        "before": side,
        "after": side,
    }
    key = {"id": text, "owner": text, "name": text, "start": text, "scopes": [text], "is_live": True, "created_at": AT}
    hook = {"id": text, "url": text, "events": [text], "payload": text, "enabled": True, "created_at": AT}
    model = {"repo_id": text, "revision": text, "family": text, "supported": False, "methods": [text]}
    return {
        f"GET /jobs/{JOB_ID}": job,
        "GET /jobs": listed(job),
        f"GET /jobs/{JOB_ID}/events": listed({"seq": 1, "type": text, "at": AT, "attempt": 1, "data": {text: text}}),
        f"GET /jobs/{JOB_ID}/logs": listed({"number": 1, "at": AT, "attempt": 1, "text": text}),
        f"GET /jobs/{JOB_ID}/metrics": listed(metric),
        f"GET /jobs/{JOB_ID}/report": report,
        "GET /workers": listed(worker),
        "GET /families": listed({"model_type": text, "methods": [text], "structures": [], "reason": text}),
        "GET /keys": listed(key),
        "GET /credentials": listed({"name": text, "created_at": AT, "updated_at": AT}),
        "GET /webhooks": listed(hook),
        "POST /plans": {"model": model, "warnings": [warning], "refusals": [warning]},
    }


def listed(*items: object) -> dict[str, object]:
    return {"items": items, "next_cursor": None}


COMMANDS = [
    *((name, JOB_ID) for name in ("status", "events", "logs", "metrics", "report")),
    *((name,) for name in ("list", "workers", "families")),
    *((name, "list") for name in ("keys", "credentials", "webhooks")),
    ("plan", *JOB),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_text_stays_text(service: StubService, command: tuple[str, ...]) -> None:
    """It is obeyed neither by the terminal nor as markup of the library that prints, and makes no line of its own."""
    printed = shown(service, *command, text=SENT)
    assert printable(printed, lines=True) == printed
    assert "[red]a[/red]" in shown(service, *command, text="[red]a[/red]")
    lines = shown(service, *command, text="x\nFORGED").splitlines()
    assert [line for line in lines if line.lstrip().startswith("FORGED")] == []
    assert any("FORGED" in line for line in lines)


def test_json_has_the_value(service: StubService) -> None:
    done = shown(service, "logs", JOB_ID, "--json", text=SENT)
    assert json.loads(done)["items"][0]["text"] == SENT
    assert printable(done, lines=True) == done


def test_errors_of_a_service(service: StubService) -> None:
    entry = {"field": SENT, "value": SENT, "message": SENT}
    service.answers[f"GET /jobs/{JOB_ID}"] = [(422, a_problem(422, detail=SENT, errors=[entry]))]
    assert run_at(service, "status", JOB_ID).stderr == f"error: {printable(f'{SENT}: {SENT}')}\n"


def test_a_report_that_is_a_file(service: StubService, tmp_path: Path) -> None:
    """It is read here, and may hold what no service would send: that is no report."""
    for text, code in ((SENT, 0), (f"{SENT} {TEXTS['half a character']}", 2)):
        report = answers(text)[f"GET /jobs/{JOB_ID}/report"]
        (tmp_path / "replaceme.json").write_text(json.dumps(report))
        for options in ((), ("--json",)):
            done = run_at(service, "report", str(tmp_path), *options)
            assert done.exit_code == code, (done.output, done.exception)
            assert printable(done.output, lines=True) == done.output


def test_on_a_terminal(service: StubService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own colours are the only escapes."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    printed = shown(service, "status", JOB_ID, text=TEXTS["a terminal"])
    assert "\x1b[" in printed
    plain = re.sub(r"\x1b\[[\d;]*m", "", printed)
    assert printable(plain, lines=True) == plain
    assert "\\u001b[2J" in plain


def shown(service: StubService, *command: str, text: str) -> str:
    service.answers = {request: [(200, content)] for request, content in answers(text).items()}
    done = run_at(service, *command)
    assert done.exit_code == (2 if command[0] == "plan" else 0), (done.output, done.exception)
    return done.output
