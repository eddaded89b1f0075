"""Signals that come before a job has an id, or while it is being cancelled."""

import os
import signal

import pytest
import typer

from api.cli.exit_codes import ExitCode
from api.cli.service import finish, interrupts
from api.client.client import Client
from api.client.models import Job
from tests.fixtures.cli.stub_service import JOB_ID, StubService, a_job, a_problem, stub_service


def interrupted(service: StubService) -> int | None:
    """The exit code of a command that gets SIGTERM while its job is being submitted."""
    with Client(service.url) as client, interrupts(wanted=True) as held:
        os.kill(os.getpid(), signal.SIGTERM)  # held: nothing happens yet
        job = Job.model_validate(a_job())
        with pytest.raises(typer.Exit) as ended:
            finish(client, job, wait=False, timeout=None, held=held, as_json=True)
    return ended.value.exit_code


def test_a_signal_during_the_submission_cancels_the_job() -> None:
    with stub_service() as service:
        service.answers[f"POST /jobs/{JOB_ID}/cancel"] = [(202, a_job(status="running"))]
        service.answers[f"GET /jobs/{JOB_ID}"] = [(200, a_job(status="cancelled"))]
        assert interrupted(service) == ExitCode.CANCELLED
        assert [request for request, _ in service.received] == [f"POST /jobs/{JOB_ID}/cancel", f"GET /jobs/{JOB_ID}"]


def test_a_job_that_has_ended_meanwhile_has_its_own_exit_code() -> None:
    with stub_service() as service:
        service.answers[f"POST /jobs/{JOB_ID}/cancel"] = [(409, a_problem(409))]
        service.answers[f"GET /jobs/{JOB_ID}"] = [(200, a_job(status="failed"))]
        assert interrupted(service) == ExitCode.JOB_FAILED


def test_a_job_that_does_not_stop_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.cli.service.CANCEL_SECONDS", 0.1)
    with stub_service() as service:
        service.answers[f"POST /jobs/{JOB_ID}/cancel"] = [(202, a_job(status="running"))]
        service.answers[f"GET /jobs/{JOB_ID}"] = [(200, a_job(status="running"))]
        assert interrupted(service) == ExitCode.CANCELLED


def test_a_second_signal_does_not_wait() -> None:
    with interrupts(wanted=True):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with interrupts(wanted=True):
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
