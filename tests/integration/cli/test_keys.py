"""Keys and tokens in a running service: who gets in, and that no process, file or log shows them."""

import json
import re
from pathlib import Path

import httpx2
import psutil
import pytest

from api.client.client import Client
from benchmarks.harness.processes import WAIT_SECONDS, wait_until
from benchmarks.harness.runners.gates import is_held, open_gates, set_gate
from benchmarks.harness.site import MODEL
from tests.fixtures.cli.local import run_here
from tests.fixtures.service.serve import Serve, add_model, served

TOKEN = "hf_plantedplantedplanted"
JOB = {"model": MODEL, "ratio": 0.25, "calibration": "builtin:pydoc-topics", "credential": "mine"}


def seen_in_processes(serve: Serve) -> str:
    """Arguments of all processes of the service, and the environment of its runners."""
    found = []
    for process in [psutil.Process(serve.process.pid), *serve.family()]:
        try:
            command = " ".join(process.cmdline())
            found.append(command)
            if "stub_runner" in command:
                found.append(json.dumps(process.environ()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return "\n".join(found)


def test_planted_secrets_are_seen_nowhere(tmp_path: Path) -> None:
    with served(tmp_path) as serve:
        add_model(serve.data / "hub")
        key = (serve.data / "api-key").read_text().strip()
        answers = []
        with Client(serve.url, api_key=key) as client:
            answers.append(client.credentials.set("mine", TOKEN).model_dump_json())
            job = client.submit({**JOB, "labels": {"stub.seconds": "2"}})
            set_gate(serve.data, job.id, "fold")
            wait_until(lambda: is_held(serve.data, job.id, "fold"), what="a runner at work")
            processes = seen_in_processes(serve)
            open_gates(serve.data)
            assert "stub_runner" in processes
            done = client.wait(job.id, timeout=WAIT_SECONDS)
            assert done.status == "succeeded", done.error
            created = client.keys.create({"name": "planted"}).key
            answers += [done.model_dump_json(), str(list(client.history(job.id))), str(client.report(job.id))]
            answers += [str(list(client.keys.list())), str(client.metrics(job.id)), str(client.credentials.list())]
        assert serve.stop() == 0
        files = [path for path in serve.data.rglob("*") if path.is_file()]
        secret_files = {"api-key", "encryption-key"}
        assert {path.name for path in files} > {*secret_files, "replaceme.sqlite3", "replaceme.json"}
        sealing_key = (serve.data / "encryption-key").read_text().strip()
        texts = [*answers, processes, serve.log.read_text()]
        texts += [path.read_bytes().decode("latin-1") for path in files if path.name not in secret_files]
        for secret in (TOKEN, key, created, sealing_key):
            assert [text[:200] for text in texts if secret in text] == []


def test_simple_use_needs_no_key_until_one_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with served(tmp_path) as serve:
        assert httpx2.get(f"{serve.url}/jobs", timeout=WAIT_SECONDS).status_code == 200
        made = run_here(monkeypatch, tmp_path, "keys", "create", "ci")
        assert made.exit_code == 0, made.stderr
        assert re.fullmatch(r"rmk_\w{49}\n", made.stdout)
        # the service asks now and then whether there is a key
        wait_until(
            lambda: httpx2.get(f"{serve.url}/jobs", timeout=WAIT_SECONDS).status_code == 401,
            what="a closed service",
        )
        settings = {"REPLACEME_URL": serve.url}
        with_key = {**settings, "REPLACEME_API_KEY": made.stdout.strip()}
        for folder, command, given, exit_code in (
            (tmp_path, ("list",), settings, 0),  # with the key in data/api-key
            (elsewhere, ("list",), settings, 8),
            (elsewhere, ("list",), with_key, 0),
            (elsewhere, ("keys", "list"), with_key, 8),  # not an administrator
        ):
            assert run_here(monkeypatch, folder, *command, **given).exit_code == exit_code
