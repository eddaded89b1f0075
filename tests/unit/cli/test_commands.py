"""The commands, against a server with canned responses: what is sent, printed and returned, and the exit codes."""

import inspect
import json
import os
import signal
import subprocess
import sys
import webbrowser
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from api.cli.exit_codes import EXIT_CODES, ExitCode, exit_code_of, exit_code_of_job, exit_code_of_status
from api.cli.jobs import plan, submit
from api.cli.launch import WorkerSpec, plan_workers
from api.cli.main import COMMANDS, app
from api.cli.service import finish, interrupts
from api.client.client import Client
from api.client.models import Job
from replaceme_core import errors
from replaceme_core.hardware import WorkerKind
from replaceme_core.report.page import render_page
from tests.fixtures.cli.stub_service import JOB_ID, StubService, a_job, a_problem, run_at
from tests.fixtures.reports.shown import PLOTS, SMALL

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


def test_each_command_has_help_with_its_options_in_groups() -> None:
    panels = ("Model and blocks to remove", "Calibration text", "Method", "Evaluation", "Gate", "Computation")
    for name, (_, _, sentence) in COMMANDS.items():
        done = CliRunner().invoke(app, [name, "--help"])
        assert done.exit_code == 0, done.output
        assert sentence in " ".join(done.stdout.split())
        if name in ("submit", "plan", "compress"):
            assert [panel for panel in panels if f"─ {panel} ─" not in done.stdout] == []
            assert " --evaluation-samples " in done.stdout
            assert "perplexity_ratio<=1.6," in done.stdout


@pytest.mark.parametrize(
    ("name", "said"), [(f"acme/tiny-3of4-{NEW_ID[:8]}", "a new repository"), ("acme/mine", "as that of the job")]
)
def test_retry_says_where_the_result_goes(service: StubService, name: str, said: str) -> None:
    job = a_job(id=NEW_ID, retry_of=JOB_ID, spec={"output": {"repo_id": name}})
    service.answers[f"POST /jobs/{JOB_ID}/retry"] = [(202, job)]
    done = run_at(service, "retry", JOB_ID, "--idempotency-key", "again")
    assert done.exit_code == 0, done.output
    assert NEW_ID in done.stdout and JOB_ID in done.stdout
    assert service.keys == ["again"]
    assert f"the result goes to {name}, {said}" in done.stderr
    service.answers[f"GET /jobs/{NEW_ID}"] = [(200, a_job(id=NEW_ID, status="failed", progress=DONE))]
    assert run_at(service, "retry", JOB_ID, "--wait").exit_code == 3


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
    "time": {"seconds": 750.0, "low_seconds": 300.0, "high_seconds": 1875.0, "basis": "model", "jobs": 0},
    "stages": [{"stage": "calibrate", "seconds": 81.0, "host_bytes": 6_200_000_000, "gpu_bytes": 0}],
}
PLAN: dict[str, object] = {
    "model": {"repo_id": "org/name", "revision": "a" * 40, "family": "llama", "supported": True, "methods": ["auto"]},
    "estimate": ESTIMATE,
    "worker": {"route": None, "estimated_for": "cpu", "alive": True},
    "warnings": [{"code": "gated", "message": "org/name is gated", "field": "model"}],
    "refusals": [],
}
REFUSAL = {"code": "does_not_fit", "message": "it needs 7 bytes", "field": "model"}
SHOWN = ("8 of 30 blocks", "134,515,008 -> 106,194,240", "6.20 GB", "any (estimated for cpu), alive", "gated")
DEEPEST = ("--ratio", "max:0.5", "--gate", "perplexity_ratio<=1.6")


def test_plan_takes_the_options_of_submit_that_describe_a_job() -> None:
    own = {"url", "api_key", "as_json"}
    not_of_a_job = {"idempotency_key", "wait", "timeout", "cancel_on_interrupt", "validate_only", "junit"}
    not_of_a_job |= {"webhook", "webhook_event", "webhook_payload", "webhook_signed_by"}
    ours, theirs = (set(inspect.signature(each).parameters) for each in (plan, submit))
    assert ours - own == theirs - own - not_of_a_job


@pytest.mark.parametrize(
    ("changes", "options", "exit_code", "shown", "ratio"),
    [
        ({}, (), 0, SHOWN, 0.25),
        ({"refusals": [REFUSAL]}, (), 2, (*SHOWN, "refused: it needs 7 bytes"), 0.25),
        (
            {"estimate": {**ESTIMATE, "trials": {"at_most": 4, "seconds": 600.0}}},
            DEEPEST,
            0,
            ("at most 8 of 30 blocks", "at most 4, about 10 minutes for all"),
            {"max": 0.5},
        ),
    ],
    ids=["possible", "refused", "deepest"],
)
def test_a_plan(
    service: StubService,
    changes: dict[str, object],
    options: tuple[str, ...],
    exit_code: int,
    shown: tuple[str, ...],
    ratio: object,
) -> None:
    service.answers["POST /plans"] = [(200, {**PLAN, **changes})]
    wanted = ("plan", "--model", "org/name", "--ratio", "0.25", "--calibration", "builtin:general", *options)
    found = run_at(service, *wanted)
    assert found.exit_code == exit_code, found.output
    assert [text for text in shown if text not in found.stdout] == []
    ((request, body),) = service.received
    assert isinstance(body, dict)
    assert (request, body["model"], body["ratio"]) == ("POST /plans", {"repo_id": "org/name"}, ratio)
    assert json.loads(run_at(service, *wanted, "--json").stdout)["estimate"]["blocks"] == ESTIMATE["blocks"]


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """The directory of a result."""
    directory = tmp_path / "result"
    directory.mkdir()
    (directory / "replaceme.json").write_text(json.dumps(SMALL))
    return directory


def test_the_page_of_a_directory_and_of_a_job(service: StubService, result: Path, tmp_path: Path) -> None:
    service.answers[f"GET /jobs/{JOB_ID}/report"] = [(200, SMALL)]
    page = tmp_path / "page.html"
    for job in (str(result), JOB_ID):
        done = run_at(service, "report", job, "--html", str(page))
        assert (done.exit_code, done.stdout) == (0, ""), done.output
        assert f"wrote {page}" in done.stderr
        assert page.read_text() == render_page(SMALL)
        page.unlink()
    done = run_at(service, "report", str(result), "--html", str(page), "--json")
    assert json.loads(done.stdout) == SMALL


def test_the_plots_of_a_report(service: StubService, result: Path, tmp_path: Path) -> None:
    done = run_at(service, "report", str(result), "--plots", str(tmp_path / "a" / "b"))
    assert done.exit_code == 0, done.output
    written = sorted(path.name for path in (tmp_path / "a" / "b").iterdir())
    assert written == sorted(f"{name}.{kind}" for name in PLOTS for kind in ("svg", "png"))


def test_a_report_is_opened(
    service: StubService, result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: bool(opened.append(address)) or len(opened) == 1)
    page = tmp_path / "page.html"
    assert "no browser" not in run_at(service, "report", str(result), "--open", "--html", str(page)).stderr
    assert opened == [page.as_uri()]
    done = run_at(service, "report", str(result), "--open")
    assert "no browser was found" in done.stderr
    assert Path(opened[1].removeprefix("file://")).read_text() == render_page(SMALL)


def test_a_report_that_cannot_be_written_is_bad_input(service: StubService, result: Path, tmp_path: Path) -> None:
    for option in (("--html", str(tmp_path / "none" / "page.html")), ("--plots", str(result / "replaceme.json"))):
        done = run_at(service, "report", str(result), *option)
        assert done.exit_code == 2
        assert "cannot be written" in done.stderr


def test_plots_need_matplotlib(service: StubService, result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run_at(service, "report", str(result), "--plots", str(result / "plots"))
    assert done.exit_code == 2
    assert "pip install 'replaceme[plot]'" in done.stderr
    assert not (result / "plots").exists()
    done = run_at(service, "report", str(result), "--html", str(result / "page.html"))
    assert done.exit_code == 0
    assert "without pictures" in done.stderr


def all_errors(base: type[errors.ReplaceMeError] = errors.ReplaceMeError) -> list[type[errors.ReplaceMeError]]:
    own = [each for each in base.__subclasses__() if each.__module__ == errors.__name__]
    return [*own, *(deeper for each in own for deeper in all_errors(each))]


def test_exit_codes() -> None:
    """The documented numbers, and one for every error of the core."""
    assert [int(code) for code in ExitCode] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 130]
    assert [error.code for error in all_errors() if error.code not in EXIT_CODES] == []
    codes = {
        "invalid_input": 2,
        "unsupported_family": 2,
        "out_of_space": 3,
        "numerical_failure": 3,
        "gate_rejected": 4,
        "database_unreachable": 7,
        "access_denied": 8,
        "internal_error": 1,
        "a code from the future": 1,
    }
    assert {code: exit_code_of(code) for code in codes} == codes
    statuses = {400: 2, 404: 2, 409: 2, 422: 2, 401: 8, 403: 8, 500: 7, 503: 7}
    assert {status: exit_code_of_status(status) for status in statuses} == statuses
    ends = {"succeeded": 0, "failed": 3, "cancelled": 5}
    assert {status: exit_code_of_job(status) for status in ends} == ends
    assert exit_code_of_job("failed", code="gate_rejected") == 4
    assert exit_code_of_job("failed", code="out_of_memory") == 3


@pytest.mark.parametrize(
    ("answer", "then", "exit_code"),
    [
        ((202, a_job(status="running")), "cancelled", ExitCode.CANCELLED),
        ((409, a_problem(409)), "failed", ExitCode.JOB_FAILED),
        ((202, a_job(status="running")), "running", ExitCode.CANCELLED),
    ],
    ids=["cancelled", "ended meanwhile", "does not stop in time"],
)
def test_a_signal_during_the_submission_cancels_the_job(
    service: StubService,
    monkeypatch: pytest.MonkeyPatch,
    answer: tuple[int, object],
    then: str,
    exit_code: ExitCode,
) -> None:
    monkeypatch.setattr("api.cli.service.CANCEL_SECONDS", 0.1)
    service.answers[f"POST /jobs/{JOB_ID}/cancel"] = [answer]
    service.answers[f"GET /jobs/{JOB_ID}"] = [(200, a_job(status=then))]
    with Client(service.url) as client, interrupts(wanted=True) as held:
        os.kill(os.getpid(), signal.SIGTERM)  # held: nothing happens yet
        assert service.received == []
        with pytest.raises(typer.Exit) as ended:
            finish(client, Job.model_validate(a_job()), wait=False, timeout=None, held=held, as_json=True)
    assert ended.value.exit_code == exit_code
    assert service.received[0][0] == f"POST /jobs/{JOB_ID}/cancel"


def test_a_second_signal_does_not_wait_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with interrupts(wanted=True):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def gpu(number: int, visible: str) -> WorkerSpec:
    return WorkerSpec(name=f"gpu{number}", worker_kind=WorkerKind.GPU, visible=visible)


def test_without_gpus_one_worker_for_the_cpu_that_sees_no_gpu() -> None:
    def count() -> int:
        raise AssertionError("GPUs are not counted")

    assert plan_workers(None, {"CUDA_VISIBLE_DEVICES": "3"}, count=count) == [
        WorkerSpec(name="cpu", worker_kind=WorkerKind.CPU, visible="")
    ]


@pytest.mark.parametrize(
    ("gpus", "visible", "expected"),
    [
        ("all", None, [gpu(0, "0"), gpu(1, "1"), gpu(2, "2")]),
        ("2, 0", None, [gpu(2, "2"), gpu(0, "0")]),
        ("all", "5,7,1", [gpu(0, "5"), gpu(1, "7"), gpu(2, "1")]),
        ("1", "GPU-aa,GPU-bb,GPU-cc", [gpu(1, "GPU-bb")]),
        ("1", "", [gpu(1, "1")]),
    ],
)
def test_one_worker_for_each_gpu(gpus: str, visible: str | None, expected: list[WorkerSpec]) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert plan_workers(gpus, environ, count=lambda: 3) == expected


@pytest.mark.parametrize(
    ("gpus", "count", "words"),
    [
        ("all", 0, "torch sees no GPU"),
        ("0", 0, "torch sees no GPU"),
        ("2", 2, "there is no GPU 2: this machine has GPUs 0 to 1"),
        ("0,1", 1, "there is no GPU 1: this machine has GPU 0"),
        ("0,0", 2, "appears twice"),
        ("-1", 2, "expected all, or GPU numbers"),
        ("", 2, "expected all, or GPU numbers"),
        ("cuda:0", 2, "expected all, or GPU numbers"),
    ],
)
def test_invalid_gpus_are_refused(gpus: str, count: int, words: str) -> None:
    with pytest.raises(errors.InvalidInput, match=words):
        plan_workers(gpus, {}, count=lambda: count)
