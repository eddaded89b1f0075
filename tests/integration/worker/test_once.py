"""A worker for schedulers that start a process per job: it runs one at most, ends with 0, and needs no other worker."""

import os
import signal
from pathlib import Path

import pytest
from celery import Celery
from redis import Redis
from sqlalchemy import update

from benchmarks.harness.processes import WAIT_SECONDS
from benchmarks.harness.servers import start_valkey
from benchmarks.harness.site import Site
from replaceme_core.broker import QUEUES, broker_config
from replaceme_core.ledger.database import now
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import JobRow


def messages(site: Site) -> int:
    """Take all off the broker, and count them."""
    with Celery("tests", set_as_current=False) as app:
        app.conf.update(broker_config(site.settings))
        with app.connection_for_read() as connection:
            found = 0
            for name in QUEUES:
                while connection.default_channel.basic_get(name, no_ack=True) is not None:
                    found += 1
            return found


def test_one_job_and_no_more(site: Site) -> None:
    first, second = site.add(), site.add()
    once = site.start_once("--queues", "cpu")
    assert once.process.wait(timeout=WAIT_SECONDS) == 0, once.log.read_text()
    assert [site.job(one).status for one in (first, second)] == [JobStatus.SUCCEEDED, JobStatus.QUEUED]
    assert site.start_once().process.wait(timeout=WAIT_SECONDS) == 0
    assert site.job(second).status is JobStatus.SUCCEEDED
    empty = site.start_once()
    assert empty.process.wait(timeout=WAIT_SECONDS) == 0
    assert "no job can start" in empty.log.read_text()
    assert "could be taken off the broker" not in empty.log.read_text()
    assert messages(site) == 0, "they do not pile up"
    assert site.workspaces() == []


def test_what_a_lost_one_left_is_requeued_by_the_next(embedded_site: Site) -> None:
    site = embedded_site
    site.extra = {"REPLACEME_SWEEP_SECONDS": "600"}  # it waits for twice as long before it may start again
    job_id = site.add(stub_seconds="600")
    lost = site.start_once()
    site.wait_for_runner(job_id)
    lost.kill_tree()
    with site.database.session() as session:
        session.execute(update(JobRow).values(lease_expires_at=now(plus_seconds=-1)))
    assert site.start_once().process.wait(timeout=WAIT_SECONDS) == 0
    assert site.event_types(job_id)[-1] == "lease_lapsed"


def test_a_broker_that_gives_no_message_stops_no_job(embedded_site: Site) -> None:
    """As a Redis that a failover has made a replica."""
    site = embedded_site
    with start_valkey() as valkey, Redis.from_url(valkey.url) as server:
        server.replicaof("127.0.0.1", 1)  # where no server is
        site.extra = {"REPLACEME_BROKER_URL": valkey.url}
        job_id = site.add()
        once = site.start_once()
        assert once.process.wait(timeout=WAIT_SECONDS) == 0, once.log.read_text()
    assert site.job(job_id).status is JobStatus.SUCCEEDED
    assert "no message could be taken off the broker (ReadOnlyError)" in once.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_releases_its_job_at_a_signal(embedded_site: Site, number: signal.Signals) -> None:
    site = embedded_site
    site.extra = {"REPLACEME_DRAIN_SECONDS": "0.5"}
    job_id = site.add(stub_seconds="600")
    once = site.start_once()
    site.wait_for_runner(job_id)
    once.process.send_signal(number)
    assert once.process.wait(timeout=WAIT_SECONDS) == 0, once.log.read_text()
    assert site.job(job_id).status is JobStatus.QUEUED
    assert site.event_types(job_id)[-1] == "released"
    assert "Traceback" not in once.log.read_text()
    assert site.runners() == []


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("REPLACEME_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none", "the database does not answer"),
        ("REPLACEME_RUNNER_COMMAND", '["/nowhere/runner"]', "this machine cannot run jobs: there is no program"),
    ],
)
def test_it_fails_where_no_job_can_be_claimed(embedded_site: Site, name: str, value: str, reason: str) -> None:
    """A pod that ends with 0 hides that none of them can do anything."""
    site = embedded_site
    site.extra = {name: value}
    once = site.start_once()
    assert once.process.wait(timeout=WAIT_SECONDS) == 1
    last = once.log.read_text().splitlines()[-1]
    assert last.startswith(f"this worker cannot run a job: {reason}"), last


SIGTERM_AT_AN_IMPORT = """
import signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "kombu":
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGTERM)

sys.meta_path.insert(0, Finder())
"""


def test_sigterm_during_its_imports_is_kept(embedded_site: Site, tmp_path: Path) -> None:
    """It would end another process, and be lost for the first one of a container."""
    site = embedded_site
    (tmp_path / "sitecustomize.py").write_text(SIGTERM_AT_AN_IMPORT)
    site.extra = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", str(Path.cwd()))])}
    job_id = site.add()
    once = site.start_once()
    assert once.process.wait(timeout=WAIT_SECONDS) == 0, once.log.read_text()
    assert site.event_types(job_id) == ["created"]
