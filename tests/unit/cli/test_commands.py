"""The commands, against a server with canned responses: what is sent, printed and returned, and the exit codes."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import webbrowser
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from api.cli.exit_codes import ExitCode, Failure, exit_code_of
from api.cli.main import COMMANDS, app, main
from api.cli.service import Service, finish, interrupts
from api.client.errors import BY_STATUS, Refused
from api.client.models import Job
from replaceme_core import errors
from replaceme_core.report.page import render_page
from tests.fixtures.cli.stub_service import JOB_ID, StubService, a_job, a_problem, fits_eighty_columns, run_at
from tests.fixtures.reports.shown import PLOTS, SMALL

AT = "2026-11-25T00:00:00Z"
NEW_ID = "3f2b8c52-0000-4000-8000-000000000009"


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


def test_no_file_gets_the_number_of_a_closed_standard_stream() -> None:
    """As a service is started whose terminal may close: `replaceme serve <&- 2>&-`."""
    program = """if True:
        import atexit, os, sys
        from api.cli.main import main
        same = lambda: [os.path.samestat(os.fstat(number), os.stat(os.devnull)) for number in (0, 2)]
        atexit.register(lambda: print(same(), sys.stdin.read(), sys.stderr.write("\xe4"), sys.stderr.isatty()))
        main()"""
    command = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", sys.executable, "-c", program, "--version"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[1:] == ["[True, True]  1 False"]


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


LONG = "HuggingFaceTB/SmolLM2-135M-Instruct-with-a-long-name"
METRIC = {"stage": "evaluate", "at": AT, "name": "before.tokens_per_second", "unit": "parameters", "value": "NaN"}
WORKER = {"name": f"w1@{LONG}", "kinds": ["cpu", "gpu"], "device": "NVIDIA H100 80GB HBM3", "started_at": AT}
WORKER |= {"heartbeat_at": AT, "alive": True, "busy": True, "jobs": [JOB_ID]}
SCOPES = ["jobs:read", "jobs:write", "webhooks:write", "admin"]
KEY = {"id": JOB_ID, "owner": "a-team-with-a-long-name", "name": "a key", "start": "rmk_abcdefgh", "scopes": SCOPES}
KEY |= {"is_live": True, "created_at": AT, "expires_at": AT, "last_used_at": AT}
RUNNING = a_job(status="running", stage="calibrate", spec={"model": {"repo_id": LONG}, "drop": [*range(1, 90, 2)]})
LINES = [{"number": number, "at": AT, "attempt": 1, "text": f"line {number}"} for number in (1, 2, 3)]


def page(*items: object, cursor: str | None = None) -> tuple[int, object]:
    return 200, {"items": items, "next_cursor": cursor}


@pytest.mark.parametrize(
    ("command", "pages", "words", "last"),
    [
        (
            f"metrics {JOB_ID}",
            [page({**METRIC, "candidate": LONG}, {**METRIC, "block": 4, "value": 0.5})],
            ["evaluate before.tokens_per_second", "nan parameters", "block 4 0.5 parameters"],
            f"GET /jobs/{JOB_ID}/metrics",
        ),
        (
            "workers",
            [page(WORKER, {**WORKER, "name": "w2", "alive": False})],
            ["cpu gpu NVIDIA H100 80GB HBM3 busy", "w2 cpu gpu NVIDIA H100 80GB HBM3 lost"],
            "GET /workers",
        ),
        (
            f"logs {JOB_ID}",
            [page(*LINES[:2], cursor="2"), page(LINES[2])],
            ["line 1", "line 2", "line 3"],
            f"GET /jobs/{JOB_ID}/logs?after=2",
        ),
        (
            "list --status failed --status queued --model org/name --sort created_at --label a=b --limit 1",
            [page(RUNNING, cursor="more")],
            [JOB_ID, "calibrate"],
            "GET /jobs?status=failed&status=queued&model=org%2Fname&sort=created_at&limit=1&label=a%3Db",
        ),
        ("keys list", [page(KEY)], [JOB_ID, "webhooks:write", "rmk_abcdefgh…"], "GET /keys?limit=200"),
    ],
    ids=lambda given: given.split()[0] if isinstance(given, str) else "",
)
def test_what_is_listed(
    service: StubService, command: str, pages: list[tuple[int, object]], words: list[str], last: str
) -> None:
    request = last.partition("?")[0]
    service.answers[request] = [*pages]
    done = run_at(service, *command.split())
    assert done.exit_code == 0, done.output
    fits_eighty_columns(done.stdout)
    shown = " ".join(done.stdout.split())
    assert [each for each in words if each not in shown] == []
    assert service.received[-1] == (last, None)
    service.answers[request] = [*pages]
    items = json.loads(run_at(service, *command.split(), "--json").stdout)["items"]
    sent = [item for _, body in pages for item in body["items"]]  # type: ignore[index]
    assert [item | given for item, given in zip(items, sent, strict=True)] == items, "with all that was sent"


def test_a_job_is_named_by_the_beginning_of_its_id(service: StubService) -> None:
    beginning = JOB_ID[:8]
    asked = "GET /jobs"
    for found, code, said in (([a_job()], 0, ""), ([a_job(), a_job()], 2, f"several jobs begin with {beginning}")):
        service.answers[asked] = [(200, {"items": found, "next_cursor": None})]
        service.answers[f"GET /jobs/{JOB_ID}"] = [(200, a_job())]
        done = run_at(service, "status", beginning)
        assert (done.exit_code, said in done.stderr) == (code, True), done.output
    service.answers[asked] = [(200, {"items": [], "next_cursor": None})]
    service.answers[f"GET /jobs/{beginning}"] = [(404, a_problem(404))]
    assert run_at(service, "status", beginning).exit_code == 2
    assert service.received[0][0] == f"GET /jobs?id_prefix={beginning}&limit=2"


def test_delete_names_each_job_that_is_deleted(service: StubService) -> None:
    service.answers["GET /jobs"] = [(200, {"items": [a_job()], "next_cursor": None})]
    service.answers[f"DELETE /jobs/{JOB_ID}"] = [(204, b"")]
    done = run_at(service, "delete", JOB_ID[:8], "--json")
    assert json.loads(done.stdout) == {"deleted": [JOB_ID]}
    failed = run_at(service, "delete", JOB_ID, NEW_ID, "--json")
    assert failed.exit_code == ExitCode.BAD_INPUT
    assert f"job {JOB_ID} is deleted" in failed.stderr


def test_a_sweep_is_submitted_and_waited_for(service: StubService) -> None:
    jobs = [a_job(id=one, status="queued", labels={"sweep": "ab"}) for one in (JOB_ID, NEW_ID)]
    service.answers["POST /jobs"] = [(202, {"items": jobs, "next_cursor": None})]
    service.answers[f"GET /jobs/{JOB_ID}"] = [(200, a_job(id=JOB_ID, status="succeeded"))]
    error = {"code": "out_of_memory", "message": "no memory"}
    service.answers[f"GET /jobs/{NEW_ID}"] = [(200, a_job(id=NEW_ID, status="failed", error=error))]
    asked = ("--model", "org/name", "--ratio", "0.25,0.5", "--calibration", "builtin:general")
    done = run_at(service, "submit", *asked, "--json")
    assert (done.exit_code, [one["status"] for one in json.loads(done.stdout)["items"]]) == (0, ["queued", "queued"])
    assert "2 jobs; see: replaceme list --label sweep=ab" in done.stderr
    sent = service.received[0][1]
    assert isinstance(sent, dict) and sent["ratio"] == [0.25, 0.5]
    done = run_at(service, "submit", *asked, "--wait", "--json")
    assert (done.exit_code, [one["status"] for one in json.loads(done.stdout)["items"]]) == (3, ["succeeded", "failed"])
    for option in ("--validate-only", "--cancel-on-interrupt"):
        assert run_at(service, "submit", *asked, option).exit_code == 2


@pytest.mark.parametrize("first", ["succeeded", "running"])
def test_a_sweep_that_times_out_is_listed_whole(service: StubService, first: str) -> None:
    jobs = [a_job(id=one, status="queued", labels={"sweep": "ab"}) for one in (JOB_ID, NEW_ID)]
    service.answers["POST /jobs"] = [(202, {"items": jobs, "next_cursor": None})]
    service.answers[f"GET /jobs/{JOB_ID}"] = [(200, a_job(id=JOB_ID, status=first))]
    service.answers[f"GET /jobs/{NEW_ID}"] = [(200, a_job(id=NEW_ID, status="running"))]
    asked = ("--model", "org/name", "--ratio", "0.25,0.5", "--calibration", "builtin:general")
    done = run_at(service, "submit", *asked, "--timeout", "0.1", "--json")
    shown = json.loads(done.stdout)["items"]
    assert (done.exit_code, [one["status"] for one in shown]) == (ExitCode.TIMED_OUT, [first, "running"])
    assert "not ended" in done.stderr


def test_a_time_beyond_the_calendar_is_bad_usage(service: StubService) -> None:
    for command in ("list", "cancel"):
        done = run_at(service, command, "--created-after", "0001-01-01")
        assert (done.exit_code, service.received) == (2, [])
        assert "Invalid value for '--created-after'" in done.stderr


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


def test_an_error_is_printed_once(service: StubService) -> None:
    entry = {"field": "model", "value": "x", "message": "there is no such model"}
    service.answers[f"GET /jobs/{JOB_ID}"] = [(422, a_problem(422, detail="there is no such model", errors=[entry]))]
    done = run_at(service, "status", JOB_ID, "--json")
    assert done.stderr == "error: model: there is no such model\n"
    message = {"code": "c", "message": "there is no such model", "field": None, "errors": [entry]}
    assert json.loads(done.stdout) == {"error": message}
    service.answers[f"GET /jobs/{JOB_ID}"] = [(404, a_problem(404))]
    assert run_at(service, "status", JOB_ID).stderr == "error: what happened\n"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("list --label x", "expected NAME=VALUE"),
        ("list --nothing", "No such option: --nothing"),
        ("status a b", "Got unexpected extra argument"),
        ("nothing", "No such command 'nothing'"),
        ("keys nothing", "No such command 'nothing'"),
    ],
)
def test_wrong_arguments_are_an_error_in_json_too(service: StubService, wrong: str, words: str) -> None:
    done = run_at(service, *wrong.split(), "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.exit_code, error["code"], words in error["message"]) == (2, "invalid_input", True)
    done = run_at(service, *wrong.split())
    assert (done.exit_code, done.stdout, words in done.stderr) == (2, "", True)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--text", "x" * 300, "xxx"),
        ("--text", '{"dataset":', 'Invalid value: {"dataset": is not JSON'),
        ("--cache", __file__, "Invalid value for '--cache'"),
    ],
    ids=["a path that is too long", "no JSON", "a file"],
)
def test_options_of_evaluate_that_are_bad_input(tmp_path: Path, option: str, value: str, words: str) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path), option, value])
    assert (done.exit_code, done.stdout, words in done.stderr) == (2, "", True), done.output


def test_which_errors_of_the_system_are_expected() -> None:
    """Made here, since no path is closed to root, as whom tests may run."""
    found = Failure.of(PermissionError(errno.EACCES, "Permission denied", "some/file"))
    assert found is not None
    assert (found.exit_code, found.message) == (ExitCode.BAD_INPUT, "some/file: Permission denied")
    assert Failure.of(OSError(errno.EIO, "Input/output error", "some/file")) is None


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """The directory of a result."""
    directory = tmp_path / "result"
    directory.mkdir()
    (directory / "replaceme.json").write_text(json.dumps(SMALL))
    return directory


def test_a_report_of_a_job_and_of_a_directory(service: StubService, result: Path, tmp_path: Path) -> None:
    service.answers[f"GET /jobs/{JOB_ID}/report"] = [(200, SMALL)]
    of_directory, of_job = (run_at(service, "report", job) for job in (str(result), JOB_ID))
    assert of_directory.exit_code == 0, of_directory.output
    assert of_directory.stdout == of_job.stdout
    assert re.match(r"removed \d+ of \d+ blocks: ", of_job.stdout)
    page, plots = tmp_path / "page.html", tmp_path / "a" / "plots"
    done = run_at(service, "report", JOB_ID, "--json", "--html", str(page), "--plots", str(plots))
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == SMALL
    assert f"wrote {page}" in done.stderr
    assert page.read_text() == render_page(SMALL)
    assert {path.name for path in plots.iterdir()} == {f"{name}.{kind}" for name in PLOTS for kind in ("svg", "png")}


def test_a_terminal_that_is_not_utf_8_shows_a_missed_gate(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missed = {"name": "agreement", "value": 0.5, "min": 0.9, "max": None, "passed": False}
    report = {**SMALL, "gate": {"passed": False, "criteria": [missed]}}
    (result / "replaceme.json").write_text(json.dumps(report))
    monkeypatch.setattr(sys, "argv", ["replaceme", "report", str(result)])
    written = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, file in written.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(file, encoding="latin-1"))
    with pytest.raises(SystemExit) as ended:
        main()
    sys.stdout.flush()
    assert (ended.value.code, b"\\u2717 missed" in written["stdout"].getvalue()) == (0, True)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_standard_output_that_is_full_is_bad_input(
    result: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "argv", ["replaceme", "report", str(result), *options])
    with io.TextIOWrapper(Path("/dev/full").open("wb", buffering=0), write_through=True) as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            main()
    assert (ended.value.code, capsys.readouterr().err) == (2, "error: the output: No space left on device\n")


@pytest.mark.usefixtures("brief_reports")
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
    assert Path(opened[1].removeprefix("file://")).read_text() == page.read_text()


def test_a_report_that_cannot_be_read_or_written_is_bad_input(
    service: StubService, result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def require(words: str, *arguments: object) -> None:
        done = run_at(service, "report", *map(str, arguments))
        assert (done.exit_code, done.stdout, words in done.stderr) == (2, "", True), done.output

    file, plots = result / "replaceme.json", result / "plots"
    require("an empty name is neither", "")
    require("cannot be written", result, "--html", tmp_path / "none" / "page.html")
    require("cannot be written", result, "--plots", file)
    require("the report cannot be written: No space left", result, "--html", "/dev/full")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        require("pip install 'replaceme[plot]'", result, "--plots", plots)
        assert not plots.exists()
        page = str(result / "page.html")
        assert "without pictures" in run_at(service, "report", str(result), "--html", page).stderr
    file.write_text("[]")
    require("must hold a JSON object", result)
    require("has no replaceme.json", tmp_path)


def all_errors(base: type[errors.ReplaceMeError] = errors.ReplaceMeError) -> list[type[errors.ReplaceMeError]]:
    own = [each for each in base.__subclasses__() if each.__module__ == errors.__name__]
    return [*own, *(deeper for each in own for deeper in all_errors(each))]


def test_exit_codes() -> None:
    """The documented numbers, and one for every error of the core."""
    assert [int(code) for code in ExitCode] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 130]
    assert [error for error in all_errors() if exit_code_of(error) == 1] == [errors.SecretUnreadable]
    kinds = {
        errors.InvalidInput: 2,
        errors.UnsupportedFamily: 2,
        errors.OutOfSpace: 3,
        errors.NumericalFailure: 3,
        errors.GateRejected: 4,
        errors.DatabaseUnreachable: 7,
        errors.GatedRepository: 8,
        errors.ReplaceMeError: 1,
    }
    assert {kind: exit_code_of(kind) for kind in kinds} == kinds
    statuses = {400: 2, 404: 2, 409: 2, 422: 2, 401: 8, 403: 8, 500: 7, 503: 7}
    assert {status: exit_code_of(BY_STATUS.get(status, Refused)) for status in statuses} == statuses


@pytest.mark.parametrize(
    ("answer", "then", "exit_code"),
    [
        (202, "cancelled", ExitCode.CANCELLED),
        (409, "failed", ExitCode.JOB_FAILED),  # it has ended meanwhile
        (202, "running", ExitCode.CANCELLED),  # it does not stop in time
    ],
)
def test_a_signal_during_the_submission_cancels_the_job(
    service: StubService, monkeypatch: pytest.MonkeyPatch, answer: int, then: str, exit_code: ExitCode
) -> None:
    monkeypatch.setattr("api.cli.service.CANCEL_SECONDS", 0.1)
    body = a_job(status="running") if answer == 202 else a_problem(answer)
    service.answers[f"POST /jobs/{JOB_ID}/cancel"] = [(answer, body)]
    service.answers[f"GET /jobs/{JOB_ID}"] = [(200, a_job(status=then))]
    with interrupts(wanted=True) as held:
        os.kill(os.getpid(), signal.SIGTERM)  # held: nothing happens yet
        assert service.received == []
        at = Service(service.url, api_key=None, as_json=True)
        with pytest.raises(typer.Exit) as ended:
            finish(at, Job.model_validate(a_job()), wait=False, timeout=None, held=held)
    assert ended.value.exit_code == exit_code
    assert service.received[0][0] == f"POST /jobs/{JOB_ID}/cancel"


def test_what_a_pipeline_reads_is_there_though_nothing_can_be_printed(
    service: StubService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, junit = io.StringIO(), tmp_path / "gate.xml"
    closed.close()
    service.answers[f"GET /jobs/{JOB_ID}"] = [(200, a_job(status="succeeded"))]
    at, job = Service(service.url, api_key=None, as_json=True), Job.model_validate(a_job())
    monkeypatch.setattr("sys.stdout", closed)
    with pytest.raises(ValueError, match="closed file"):
        finish(at, job, wait=True, timeout=None, held=None, junit=junit)
    assert junit.exists()


def test_a_second_signal_does_not_wait_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with interrupts(wanted=True):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
