"""Nothing of the server is in what a client can read: paths, hosts and passwords are planted, and looked for."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from httpx2 import Response
from pydantic import ValidationError
from starlette.testclient import TestClient

from api.main import create_app
from benchmarks.harness.jobs import events_of
from replaceme_core.hub import directory
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.states import JobStatus
from replaceme_core.settings import Settings
from tests.fixtures.api.requests import SMALLEST, assert_problem, fields, put_dataset, put_model
from tests.fixtures.api.service import settings_for
from tests.fixtures.worker.supervisor import Bench

PASSWORD = "p@ss:w0rd@"
ESCAPED = "p%40ss%3Aw0rd%40"
PLANTED = ("planted", "p@ss", "w0rd", ESCAPED, "/tmp", "127.0.0.1", "Traceback")


def assert_clean(text: str, *more: str) -> None:
    assert [word for word in (*PLANTED, *more) if word in text] == [], text


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "planted-place"


@pytest.fixture
def settings(place: Path, sqlite_url: str) -> Settings:
    return settings_for(place, database_url=sqlite_url)


def ask_everything(settings: Settings) -> list[Response]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        return [
            client.get("/ready"),
            client.get("/jobs"),
            client.get("/jobs/00000000-0000-4000-8000-000000000000"),
            client.get("/jobs/00000000-0000-4000-8000-000000000000/events"),
            client.post("/jobs", json=SMALLEST),
            client.post("/jobs", json=SMALLEST, headers={"Idempotency-Key": "k"}),
            client.post("/jobs", json={**SMALLEST, "calibration": "org/data"}),
            client.post("/jobs/00000000-0000-4000-8000-000000000000/cancel"),
        ]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"database_url": f"postgresql+psycopg://planted:{ESCAPED}@127.0.0.1:1/planted"}, "database_unreachable"),
        ({"database_url": f"postgresql+psycopg://planted:{ESCAPED}@planted.invalid/planted"}, "database_unreachable"),
        ({"broker_url": f"redis://:{ESCAPED}@127.0.0.1:1/0"}, "queue_unreachable"),
        ({"hub": "http://127.0.0.1:1/planted"}, "hub_unreachable"),
        ({"hub": "dir:/planted/hub"}, "hub_unreachable"),
    ],
)
def test_what_cannot_be_reached(settings: Settings, changes: dict[str, str], code: str) -> None:
    answers = ask_everything(settings.model_copy(update=changes))
    assert code in {answer.json().get("code") for answer in answers}
    for answer in answers:
        assert answer.status_code != 500
        assert_clean(answer.text)


def test_what_cannot_be_read(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> NoReturn:
        raise OSError(errors[-1], os.strerror(errors[-1]), str(folder))

    errors: list[int] = []
    monkeypatch.setattr(directory, "walk", fail)
    with TestClient(create_app(settings)) as client:
        for error, status, code in ((errno.EIO, 503, "hub_unreachable"), (errno.EACCES, 403, "access_denied")):
            errors.append(error)
            answer = client.post("/jobs", json=SMALLEST)
            assert_problem(answer, status=status, code=code)
            assert_clean(answer.text)


SERVERS = (
    *(f"redis://:{PASSWORD}@db/0", "redis://:w0rd/x@db:6379/0", "postgresql://u:w0rd/x@db/n"),
    *("sentinel://a:1;sentinel://:w0rd/x@b:2", f"postgresql://planted:{PASSWORD}@db/n", "postgres://u:x@y:w0rd@db"),
)
GOOD_SERVERS = (
    *(f"redis://:{ESCAPED}@127.0.0.1:6379/0", "sentinel://a:26379;sentinel://b:26379"),
    *("postgresql+psycopg://u:p@/n?host=a:5432&host=b:5432", "postgresql://[::1]:5432/n", "sqlite:////srv/a@b;c/d"),
    "postgresql://u:p%40ss@db/n?options=a@b",
)
HUBS = (
    *("https://planted:w0rd@huggingface.co", "https://planted@huggingface.co", "https://huggingface.co/#w0rd"),
    *("planted:w0rd@huggingface.co", "ftp://w0rd"),
)
GOOD_HUBS = ("https://huggingface.co", "http://[::1]:8080/", "https://hub.example.org:8443/mirror/hf", "dir:/a@b")


@pytest.mark.parametrize(
    ("name", "wrong", "words", "good"),
    [
        ("database_url", SERVERS, "written as %40", GOOD_SERVERS),
        ("broker_url", SERVERS, "written as %40", GOOD_SERVERS),
        ("hub", HUBS, "without a name and a password", GOOD_HUBS),
    ],
)
def test_an_address_whose_secret_would_be_shown_is_refused(
    settings: Settings, name: str, wrong: tuple[str, ...], words: str, good: tuple[str, ...]
) -> None:
    """What is behind the first @ would be taken for the host, and the address of the Hub is in what is published."""
    for url in wrong:
        with pytest.raises(ValidationError, match=words) as caught:
            Settings.model_validate({**settings.model_dump(exclude_none=True), name: url})
        assert_clean(str(caught.value))
    for url in good:
        Settings.model_validate({**settings.model_dump(exclude_none=True), name: url})


def test_names_and_depths_that_no_repository_has(settings: Settings, place: Path) -> None:
    deep = put_model(place / "hub", "org/deep")
    here = os.open(deep, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    odd = put_model(place / "hub", "org/odd")
    Path(os.fsdecode(os.fsencode(odd) + b"/\xff\xfe.txt")).write_text("x")
    data = put_dataset(place / "hub", "org/words")
    Path(os.fsdecode(os.fsencode(data) + b"/\xff.txt")).write_text("x")
    (place / "hub" / "local").mkdir()
    shutil.move(odd, place / "hub" / "local" / "odd")
    try:
        with TestClient(create_app(settings)) as client:
            for changes, field, words in (
                ({"model": "org/deep"}, "model", "more than 64 deep"),
                ({"model": "local/odd"}, "model", "not UTF-8"),
                ({"calibration": "org/words"}, "calibration", "not UTF-8"),
                ({"output": "local/odd"}, "output.repo_id", "not UTF-8"),
            ):
                answer = client.post("/jobs", json={**SMALLEST, **changes})
                assert fields(answer).keys() == {field}
                assert words in answer.json()["detail"]
                assert_clean(answer.text)
    finally:
        subprocess.run(["rm", "-r", str(deep)], check=True)  # `shutil.rmtree`, and so pytest, gives up on it


FAILS = """
import json, os
message = f"cannot read {os.getcwd()}/planted/config.json"
print(json.dumps({"type": "failed", "code": "broken_model", "message": message}))
"""
ENDS = "import os, sys; sys.stderr.write(os.getcwd()); sys.exit(3)"


@pytest.mark.parametrize("how", ["bug", "space", "message", "end", "command", "hub", "full"])
def test_a_job_that_fails(
    tmp_path: Path, sqlite_url: str, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    bench = Bench(tmp_path / "planted-place", sqlite_url, sqlite_database)
    changes: dict[str, object] = {"hub_patience_seconds": 0, "max_attempts": 1}
    monkeypatch.setattr("worker.supervisor.REST_SECONDS", 0)
    match how:
        case "message":
            changes["runner_command"] = (sys.executable, "-c", FAILS)
        case "end":
            changes["runner_command"] = (sys.executable, "-c", ENDS)
        case "command":
            broken = tmp_path / "planted-runner"
            broken.write_text("#!/planted/python\n")
            broken.chmod(0o755)
            changes["runner_command"] = (str(broken),)
        case "hub":
            bench.hub_directory.rename(bench.hub_directory.with_name("moved"))
        case "full":
            monkeypatch.setattr("worker.supervisor.LEAST_FREE_BYTES", 0)
            monkeypatch.setattr("replaceme_core.library_errors.free_space", lambda _: 0)
    job_id = bench.add(stub_fail=how) if how in ("bug", "space") else bench.add()
    job = bench.run(job_id, **changes)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.message
    assert_clean(job.error.message)
    events = [dict(event.data) for event in events_of(bench.database, job_id)]
    assert_clean(json.dumps([event for event in events if "worker" not in event]))
