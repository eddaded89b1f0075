"""Where a job can be hit: at the beginning of each stage, and around each request of the publication.

A job that has reached its point stands still there until it is released, so that what happens to its worker meanwhile
happens exactly then.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.harness.fake_hub.faults import Fault, Rule
from benchmarks.harness.gates import is_held, open_gates, set_gate
from benchmarks.harness.processes import wait_until
from benchmarks.harness.site import MODEL
from replaceme_core.jobs.records import Job
from tests.chaos.cluster import Cluster

REACH_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """In the runner the gate `name`; else a request to the Hub, `{output}` in its path is the job's repository."""

    name: str
    method: str | None = None
    path: str = ""
    fault: Fault = Fault.HOLD
    carry_out: bool = False
    """A held request whose client is gone: whether it arrives all the same."""

    @property
    def in_runner(self) -> bool:
        return self.method is None

    @contextmanager
    def reached(self, cluster: Cluster, **fields: object) -> Iterator[Job]:
        """A new job that stands still here. It is let go at the end of the block, or at `release`."""
        if self.method is None:
            job = cluster.submit(enqueue=False, **fields)
            set_gate(cluster.data, job.id, self.name)
            cluster.enqueue(job.id)
            try:
                self._wait(lambda: is_held(cluster.data, job.id, self.name), cluster, job)
                yield cluster.job(job.id)
            finally:
                open_gates(cluster.data)
            return
        job = cluster.submit(enqueue=False, **fields)
        path = self.path.format(output=re.escape(str(job.spec.output.repo_id)), model=re.escape(MODEL))
        rule = cluster.hub.fail(self.fault, path, method=self.method)
        cluster.enqueue(job.id)
        try:
            self._wait(rule.reached.is_set, cluster, job)
            yield cluster.job(job.id)
        finally:
            self.release(rule)

    def release(self, rule: Rule) -> None:
        rule.release(carry_out=self.carry_out or self.fault is Fault.HOLD_REPLY)

    def _wait(self, condition: object, cluster: Cluster, job: Job) -> None:
        assert callable(condition)
        what = f"job {job.id} at {self.name}"
        wait_until(condition, seconds=REACH_SECONDS, what=what)
        # the event of this stage may still be on its way to the ledger; the claim is there
        wait_until(lambda: cluster.job(job.id).worker is not None, seconds=REACH_SECONDS, what=f"a holder of {what}")

    def __str__(self) -> str:
        return self.name


def _hub(name: str, method: str, path: str, **more: object) -> Point:
    return Point(name=name, method=method, path=path, **more)  # type: ignore[arg-type]


_COMMIT = "^/api/models/{output}/commit/"
RESOLVE = _hub("resolve", "GET", "^/api/models/{model}/revision/")
DOWNLOAD = _hub("download", "GET", "^/storage/")
IN_RUNNER = tuple(Point(name=name) for name in ("calibrate", "select", "solve", "fold", "save", "evaluate", "finished"))
CREATE = _hub("publish", "POST", "^/api/repos/create")
UPLOAD = _hub("upload", "POST", "^/{output}.git/info/lfs/objects/batch")
COMMIT = _hub("commit-request-lost", "POST", _COMMIT)
LATE_COMMIT = _hub("commit-request-late", "POST", _COMMIT, carry_out=True)
COMMITTED = _hub("commit-reply-lost", "POST", _COMMIT, fault=Fault.HOLD_REPLY)

EVERYWHERE = (RESOLVE, DOWNLOAD, *IN_RUNNER, CREATE, UPLOAD, COMMIT, LATE_COMMIT, COMMITTED)
