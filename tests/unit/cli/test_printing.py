"""Output for people: durations, ranges of blocks, progress without a terminal, tables."""

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from api.cli.keys import keys_table
from api.cli.output.jobs import (
    deliveries_table,
    job_table,
    jobs_table,
    metrics_table,
    print_job,
    webhooks_table,
    workers_table,
)
from api.cli.output.progress import progress_display
from api.cli.output.report import models_table, print_report
from api.client.models import Job
from replaceme_core.report.reading import Report
from replaceme_core.shapes import ApiKey, Delivery, Metric, Try, Webhook, Worker
from tests.fixtures.cli.stub_service import JOB_ID, a_job


def terminal(*, width: int = 80, **options: Any) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=width, markup=False, **options), file


def printed(thing: object, *, width: int = 120) -> str:
    console, file = terminal(width=width)
    console.print(thing)
    return file.getvalue()


CALIBRATES = [("calibrate", overall, 30.0, 10.0) for overall in (0.0, 0.1, 0.4)]
QUEUED = [("queued", overall, eta) for overall, eta in ((0.0, None), (0.0, 30.0), (0.001, 20.0), (0.01, 10.0))]


@pytest.mark.parametrize(
    ("seconds", "reports", "expected"),
    [
        (
            (0.0, 1.0, 20.0, 20.1),
            [*CALIBRATES, ("select", 0.6, None)],
            [["calibrate", "0%"], ["calibrate", "40%"], ["select", "60%"]],
        ),
        ((0.0, 20.0, 40.0, 60.0), QUEUED, [["queued", "0%"], ["queued", "1%"]]),
    ],
    ids=["from time to time", "without news"],
)
def test_progress_lines(seconds: tuple[float, ...], reports: list[tuple[Any, ...]], expected: list[list[str]]) -> None:
    clock, (console, file) = iter(seconds), terminal()
    with progress_display(console, clock=lambda: next(clock)) as show:
        for report in reports:
            show(*report)
    lines = file.getvalue().splitlines()
    assert [line.split()[:2] for line in lines] == expected
    assert "calibrate" not in lines[0] or "20 to 40 seconds left" in lines[0]


def test_bar_on_a_terminal() -> None:
    console, file = terminal(force_terminal=True)
    with progress_display(console, clock=lambda: 0.0) as show:
        show("calibrate", 0.5, 61.0)
    assert "about 60 seconds left" in file.getvalue()


def test_a_queued_job_shows_its_position() -> None:
    queue = {"position": 3, "estimated_start_at": "2026-11-25T00:00:00Z"}
    assert "number 3, starts about 2026-11-2" in printed(job_table(Job.model_validate(a_job(queue=queue))))
    queue = {"position": 12, "estimated_start_at": None}
    text = printed(job_table(Job.model_validate(a_job(queue=queue))))
    assert "number 12" in text
    assert "starts" not in text
    for nothing in (None, {"position": None, "estimated_start_at": None}):
        assert "queue " not in printed(job_table(Job.model_validate(a_job(queue=nothing))))


def test_a_job_shows_all_sources_of_its_text() -> None:
    sources = [{"dataset": "org/a", "share": 0.5}, {"dataset": "builtin:code", "share": None}]
    sources += [{"dataset": None, "self_generated": True, "share": 0.25}]
    job = a_job(spec={"calibration": {"dataset": None, "sources": sources}})
    assert "org/a 50 %, builtin:code, self-generated 25 %" in printed(job_table(Job.model_validate(job)))
    assert "org/b" in printed(job_table(Job.model_validate(a_job(spec={"calibration": {"dataset": "org/b"}}))))


def report_of(**content: object) -> list[list[str]]:
    """The words of each line of a report in a terminal of 80 columns."""
    console, file = terminal()
    print_report(console, Report(content))
    text = file.getvalue()
    assert "…" not in text
    return [line.split() for line in text.splitlines()]


def test_both_models() -> None:
    rows = report_of(
        before={"blocks": 30, "parameters": 134_515_008, "perplexity": 32.26, "tokens_per_second": 1000.0},
        after={"blocks": 22, "parameters": 106_194_240, "perplexity": 60.6, "tokens_per_second": 1300.0},
    )
    assert ["Parameters", "134,515,008", "106,194,240", "-21.1", "%"] in rows
    assert ["Perplexity", "32.26", "60.60", "+87.8", "%"] in rows
    assert not [row for row in rows if "disk" in row]


def test_candidates_begin_with_the_chosen_one() -> None:
    rows = [
        {"start": start, "end": start + 1, "distance": 0.1, "residual": residual, "held_out_loss": loss}
        | {"chosen": start == 2, "tokens": tokens}
        for start, residual, loss, tokens in [
            (1, 0.9, None, 900),
            (2, 0.5, 4.25, 900),
            (3, 0.4, 4.5, 900),
            (4, 0.3, None, 100),
        ]
    ]
    lines = [line for line in report_of(candidates=rows) if "0.1000" in line]
    assert [line[0] for line in lines] == ["2-3", "3-4", "1-2", "4-5"]
    assert lines[0][1:] == ["(chosen)", "0.1000", "0.5000", "4.2500"]
    assert lines[2][-1] == "–"


def test_candidates_of_four_sources_fit_into_80_columns() -> None:
    names = ("builtin:pydoc-topics", "self-generated", "builtin:general", "repeated passages")
    losses = {name: 2.6 + number / 10 for number, name in enumerate(names)}
    window = {"start": 12, "end": 19, "distance": 0.1, "residual": 0.2, "held_out_loss": 2.6861, "estimated": True}
    words = [
        word for line in report_of(candidates=[window | {"source_losses": losses, "chosen": True}]) for word in line
    ]
    for value in ("12-19", "0.1000", "0.2000", "~2.6861", "2.6000", "2.7000", "2.8000", "2.9000"):
        assert value in words


def test_blocks_chosen_one_by_one_have_no_empty_columns() -> None:
    row = {"start": 5, "end": 5, "distance": None, "residual": None, "held_out_loss": 2.9, "chosen": True}
    assert "Residual" not in {word for line in report_of(candidates=[row]) for word in line}


def test_a_failed_job() -> None:
    error = {"code": "out_of_space", "message": "no space left on [/data]"}
    job = Job.model_validate(a_job(status="failed", error=error, labels={"team": "nlp"}))
    text = printed(job_table(job))
    assert "out_of_space: no space left on [/data]" in text
    assert "team=nlp" in text


def test_a_job_that_searches(capsys: pytest.CaptureFixture[str]) -> None:
    spec = {"model": {"repo_id": "org/name"}, "ratio": {"max": 0.5}}
    trials = [
        {"blocks": 2, "passed": False, "measured": {}, "seconds": 1.0, "problem": "infinite"},
        {"blocks": 1, "passed": True, "measured": {"perplexity_ratio": 1.5, "accuracy_kept": 0.9}, "seconds": 1.0},
    ]
    print_job(
        Job.model_validate(a_job(spec=spec, gate={"passed": True, "criteria": [], "trials": trials})), as_json=False
    )
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["removes", "at", "most", "0.5", "of", "blocks"] in rows
    assert ["1", "*", "1.500", "90.0", "%", "passed", "1.0", "s"] in rows
    assert ["2", "–", "–", "✗", "missed:", "infinite", "1.0", "s"] in rows


def test_models_beside_each_other() -> None:
    rate = {"median": 100.0, "low": 90.0, "high": 110.0, "runs": 5}
    speed = {"prefill": rate, "decode": rate, "cache_bytes_per_token": 192.0, "peak_bytes": 2**21}
    score = {"value": 7.5, "stderr": None}
    tasks = [
        {"name": "piqa", "accuracy": 0.8, "low": 0.75, "high": 0.85, "samples": 1838, "metrics": {}},
        {"name": "text", "accuracy": None, "metrics": {"byte_perplexity": score}},
    ]
    first = {"perplexity": 10.0, "dtype": "float32", "speed": speed, "tasks": tasks}
    kept = {"accuracy": 0.6, "low": 0.55, "high": 0.65, "kept": 0.75, "kept_above_chance": 1 / 3}
    second = {
        **first,
        "ratio": 1.5,
        "ratio_low": 1.4,
        "ratio_high": 1.6,
        "told_apart": {"prefill": True, "decode": False},
        "tasks": [{**tasks[0], **kept}, tasks[1]],
    }
    rows = [" ".join(line.split()) for line in printed(models_table(["a", "b"], [first, second])).splitlines()]
    for expected in (
        "times the first – 1.500 (1.400 to 1.600)",
        "Tokens read per second 100 (90 to 110) 100 (90 to 110)",
        "against the first – significant",
        "against the first – not significant",
        "KV cache per token 192 B 192 B",
        "Peak memory of weights and tensors 2.10 MB 2.10 MB",
        "piqa accuracy (n = 1,838) 80.0 % (75.0 % to 85.0 %) 60.0 % (55.0 % to 65.0 %)",
        "kept – 75.0 %",
        "kept above chance – 33.3 %",
        "text byte_perplexity 7.5000 7.5000",
    ):
        assert expected in rows, rows


LONG = "HuggingFaceTB/SmolLM2-135M-Instruct-with-a-long-name"
AT = datetime(2026, 11, 27, tzinfo=UTC)
WEBHOOK = Webhook(
    id=JOB_ID,
    url=f"https://hooks.example.com/{'x' * 100}",
    events=("succeeded", "cancel_requested"),
    payload="thin",
    enabled=False,
    disabled_by="receiver",
    created_at=AT,
)
MESSAGE = f"evt_{JOB_ID}-123"
DELIVERY = Delivery(
    id=MESSAGE,
    type="job.cancel_requested",
    job_id=JOB_ID,
    seq=123,
    state="pending",
    created_at=AT,
    next_try_at=AT,
    tries=(Try(number=1, at=AT, error="connection_lost", seconds=0.1),),
)
METRIC = Metric(
    name="before.tokens_per_second", stage="evaluate", candidate=LONG, value=123456.789, unit="parameters", at=AT
)
WORKER = Worker(
    name=f"worker-1@{LONG}",
    kinds=("cpu", "gpu"),
    device="NVIDIA H100 80GB HBM3",
    started_at=AT,
    heartbeat_at=AT,
    alive=True,
    busy=False,
)
KEY = ApiKey(
    id=JOB_ID,
    owner="a-team-with-a-long-name",
    name="a key with a long name",
    start="rmk_abcdefgh",
    scopes=("jobs:read", "jobs:write", "webhooks:write", "admin"),
    is_live=True,
    created_at=AT,
    expires_at=AT,
    last_used_at=AT,
)
LISTED = Job.model_validate(
    a_job(status="running", stage="calibrate", spec={"model": {"repo_id": LONG}, "drop": list(range(1, 90, 2))})
)


@pytest.mark.parametrize(
    ("table", "whole"),
    [
        (jobs_table([LISTED]), (JOB_ID, "calibrate")),
        (job_table(LISTED), (JOB_ID, LONG)),
        (metrics_table([METRIC]), ("before.tokens_per_second", "123,457", "parameters")),
        (workers_table([WORKER]), ("cpu gpu", "idle")),
        (keys_table([KEY]), (JOB_ID, "webhooks:write", "rmk_abcdefgh")),
        (webhooks_table([WEBHOOK]), (JOB_ID, "no, by receiver", "cancel_requested")),
        (deliveries_table([DELIVERY]), (MESSAGE, "connection_lost")),
    ],
    ids=["jobs", "job", "metrics", "workers", "keys", "webhooks", "deliveries"],
)
def test_tables_fit_eighty_columns(table: Table, whole: tuple[str, ...]) -> None:
    text = printed(table, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text.replace("rmk_abcdefgh…", "")
    for each in whole:
        assert each in text
