"""Output for people: progress without a terminal, tables."""

import io
from typing import Any

import pytest
from rich.console import Console

from api.cli.output.console import progress_display
from api.cli.output.jobs import job_table
from api.cli.output.report import models_table, print_report
from api.client.models import Job
from replaceme_core.report.reading import Report
from tests.fixtures.cli.stub_service import a_job


def terminal(*, width: int = 80, **options: Any) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=width, markup=False, **options), file


def printed(thing: object) -> str:
    console, file = terminal(width=120)
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


START = "2026-11-25T00:00:00Z"
SOURCES = [
    {"dataset": "org/a", "share": 0.5},
    {"dataset": "builtin:code", "share": None},
    {"dataset": None, "self_generated": True, "share": 0.25},
]


@pytest.mark.parametrize(
    ("fields", "words", "not_there"),
    [
        ({"queue": {"position": 3, "estimated_start_at": START}}, "number 3, starts about 2026-11-2", "–"),
        ({"queue": {"position": 12, "estimated_start_at": None}}, "number 12", "starts"),
        ({"queue": {"position": None, "estimated_start_at": None}}, "", "queue "),
        ({"spec": {"calibration": {"sources": SOURCES}}}, "org/a 50 %, builtin:code, self-generated 25 %", "queue "),
        ({"spec": {"calibration": {"dataset": "org/b"}}}, "org/b", "org/a"),
        ({"status": "failed", "error": {"code": "out_of_space", "message": "full"}}, "out_of_space: full", "progress"),
        ({"labels": {"team": "nlp"}}, "team=nlp", "error"),
    ],
)
def test_a_job(fields: dict[str, object], words: str, not_there: str) -> None:
    text = printed(job_table(Job.model_validate(a_job(**fields))))
    assert words in text
    assert not_there not in text


def candidates(*rows: dict[str, object]) -> list[list[str]]:
    """The words of each line of the table in a terminal of 80 columns."""
    console, file = terminal()
    print_report(console, Report({"candidates": rows}))
    assert "…" not in file.getvalue()
    return [line.split() for line in file.getvalue().splitlines()]


def test_candidates_begin_with_the_chosen_one() -> None:
    given = [(1, 0.9, None, 900), (2, 0.5, 4.25, 900), (3, 0.4, 4.5, 900), (4, 0.3, None, 100)]
    rows = [
        {"start": start, "end": start + 1, "distance": 0.1, "residual": residual, "held_out_loss": loss}
        | {"chosen": start == 2, "tokens": tokens}
        for start, residual, loss, tokens in given
    ]
    lines = [line for line in candidates(*rows) if "0.1000" in line]
    assert [line[0] for line in lines] == ["2-3", "3-4", "1-2", "4-5"]
    assert lines[0][1:] == ["(chosen)", "0.1000", "0.5000", "4.2500"]
    assert lines[2][-1] == "–"
    alone = {"start": 5, "end": 5, "distance": None, "residual": None, "held_out_loss": 2.9, "chosen": True}
    assert "Residual" not in {word for line in candidates(alone) for word in line}, "a column that would be empty"


def test_runs_that_would_go_together_have_their_losses_once() -> None:
    """Five texts are what a job has that leaves all to the defaults: no word of a heading is broken."""
    names = ("builtin:pydoc-topics", "self-generated", "builtin:general", "repeated passages", "questions")
    rows = [
        {"start": start, "end": 15, "distance": 0.1, "residual": 0.05, "held_out_loss": loss, "chosen": loss < 2.5}
        | {"group": group, "source_losses": dict.fromkeys(names, loss + 1)}
        for start, loss, group in (
            (13, 2.25, 0),
            (10, 2.25, 0),
            (11, 2.5, 1),
            (12, 2.5, 1),
            (14, 2.75, None),
            (9, 2.75, None),
        )
    ]
    lines = candidates(*rows)
    shown = [line for line in lines if "0.1000" in line]
    assert [line[-1] for line in shown] == ["3.2500", "0.0500", "3.5000", "0.0500", "3.7500", "3.7500"]
    assert {"Distance", "Residual", "held-out", "Text"} <= {word for line in lines for word in line}


def test_names_of_texts_stand_whole_below_the_candidates() -> None:
    names = ("builtin:pydoc-topics", "self-generated", "builtin:general", "a-long-organisation/a-data-set")
    losses = {name: 2.6 + number / 10 for number, name in enumerate(names)}
    window = {"start": 12, "end": 19, "distance": 0.1, "residual": 0.2, "held_out_loss": 2.6861}
    lines = candidates(window | {"source_losses": losses})
    assert ["12-19", "0.1000", "0.2000", "2.6861", "2.6000", "2.7000", "2.8000", "2.9000"] in lines
    below = [word for line in lines for word in line]
    assert [name for name in names if name not in below] == []


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
