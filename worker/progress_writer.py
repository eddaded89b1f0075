"""Writes what a running job reports to the database at a limited rate: specification, progress, metrics, log lines.

`note` never waits for the database, so that a slow database does not delay a runner. `flush` writes what has been
collected, in one transaction; the lease's thread calls it about once a second.

A runner gets no secret, and its log goes to the owner of the job only. But the log is text of libraries about a model
that somebody else made, so nothing in it is taken on trust: secrets and the places of files are removed.
"""

import logging
import math
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock
from urllib.parse import unquote, urlsplit

from sqlalchemy.orm import Session

from replaceme_core.ledger import attempts
from replaceme_core.ledger.attempts import KEPT_LINES, Step
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.records import Claim
from replaceme_core.plan.eta import Course
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.messages import Advanced, Measured, Message, Resolved, Stage, StageStarted, without_paths
from replaceme_core.settings import Settings
from replaceme_core.telemetry import mark_failed, start_span
from replaceme_core.wording import printable

logger = logging.getLogger(__name__)
runner_log = logging.getLogger("runner")
"""What runners write on standard error, in this worker's log with the ids of their attempts."""

HIDDEN = "[hidden]"
_SHORTEST_SECRET = 6  # a shorter one would hide common words
# names are bounded and do not begin within each other: the time must grow with the length of a line, not with its cube
_SECRETS = re.compile(
    r"""
    \bhf_[A-Za-z0-9]{8,}                                  # tokens of the Hub
    | \b(?:rmk|whsec|sk|ghp|gho|github_pat)_[A-Za-z0-9_+/=-]{16,}  # API keys and secrets of webhooks
    | \beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*  # JSON web tokens
    | (?<=[?&])[^=\s&?]{0,100}(?:sig|token|credential|key)[^=\s&?]{0,100}=[^\s&]+  # signed addresses
    | (?<=//)[^/\s@]+(?=@)                                # names and passwords in addresses
    """,
    re.VERBOSE | re.IGNORECASE,
)
_NAMED = re.compile(
    r"(?i)\b(authorization|bearer|token|password|passwd|secret|api[_-]?key)\b(\s*[:=]\s*|\s+)(bearer\s+)?\S+"
)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def redacted(line: str, *, known: Sequence[str]) -> str:
    """What a client may see of a line, printable; "" if nothing is left. `known` are secrets, the longest first.

    >>> redacted("reading /srv/models/config.json with token=abc123", known=())
    'reading config.json with token=[hidden]'
    """
    text = line.rsplit("\r", 1)[-1]  # the last state of a progress bar
    text = _CONTROL.sub("", text)
    for secret in known:
        text = text.replace(secret, HIDDEN)
    text = _SECRETS.sub(HIDDEN, text)
    text = _NAMED.sub(lambda found: f"{found[1]}{found[2]}{HIDDEN}", text)
    return printable(without_paths(text)).rstrip()


def secrets_of(settings: Settings) -> list[str]:
    """The secrets that this process knows, as they are written and as they are meant, the longest first."""
    tokens = (settings.hub_read_token, settings.hub_write_token)
    found = [token.get_secret_value() for token in tokens if token is not None]
    found += [urlsplit(url or "").password or "" for url in (settings.database_url, settings.broker_url)]
    written = {secret for secret in found if len(secret) >= _SHORTEST_SECRET}
    return sorted(written | set(map(unquote, written)), key=len, reverse=True)


class StageSpans(ExitStack):
    """The stages of one attempt, one after the other. As a context manager it ends the last one."""

    def begin(self, stage: Stage) -> None:
        """A stage begins, and the one before it has ended."""
        self.close()
        span = start_span(f"stage {stage}", attributes={"replaceme.stage": stage.value})

        def mark(kind: type[BaseException] | None, *_: object) -> None:
            if kind is not None:
                mark_failed(span, kind.__name__)

        self.callback(span.end)
        self.push(mark)


MOST_METRICS = 100_000
NEWS, NEWS_SECONDS = 0.1, 2.0
"""While nothing is reported, an estimate is written again once it has changed by this part and these seconds."""


@dataclass(eq=False)
class ProgressWriter:
    """Collects the messages of one attempt. Safe to use from several threads."""

    database: Database
    claim: Claim
    course: Course
    redact: Callable[[str], str] = lambda line: line
    """Removes from a line what a client may not see."""
    clock: Callable[[], float] = time.monotonic
    """That of `course`."""
    spans: StageSpans = field(default_factory=StageSpans, init=False)
    _collecting: Lock = field(default_factory=Lock, init=False)
    _writing: Lock = field(default_factory=Lock, init=False)
    _spec: CompressionSpec | None = field(default=None, init=False)
    _steps: list[Step] = field(default_factory=list, init=False)
    _latest: Step | None = field(default=None, init=False)
    _metrics: list[Measured] = field(default_factory=list, init=False)
    _measured: int = field(default=0, init=False)
    _lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES), init=False)
    _logged: int = field(default=0, init=False)

    def log(self, line: str) -> None:
        """Keep a line of the runner's log, without secrets and paths, for the next `flush`; also log the first ones."""
        shown = self.redact(line)
        if shown:
            with self._collecting:
                self._lines.append(shown)
                self._logged += 1
            if self._logged <= KEPT_LINES:
                runner_log.info("%s", shown)
            elif self._logged == KEPT_LINES + 1:
                runner_log.warning("job %s: further lines of its runner are not logged here", self.claim.job_id)

    def note(self, message: Message) -> None:
        """Keep the content of a message for the next `flush`."""
        if isinstance(message, StageStarted):
            self.spans.begin(message.stage)
        with self._collecting:
            match message:
                case Resolved():
                    self._spec = message.spec
                    if message.expected:
                        self.course.expect(message.expected, self.clock())
                case StageStarted():
                    self._move(message.stage, 0.0, message.resumed_from)
                case Advanced():
                    self._move(message.stage, message.fraction)
                case Measured() if math.isfinite(message.value):
                    self._measured += 1
                    if self._measured <= MOST_METRICS:  # of one attempt: a runner may be a stranger's
                        self._metrics.append(message)
                case Measured():
                    logger.warning(
                        "job %s: metric %s is %s and is not stored", self.claim.job_id, message.name, message.value
                    )
                case _:
                    pass

    def flush(self, then: Callable[[Session], None] | None = None) -> None:
        """Write what has been collected, and what `then` writes, in one transaction.

        Raises `LeaseLost`, or `DatabaseUnreachable`; what was not written is kept for the next call.
        """
        with self._writing:
            with self._collecting:
                self._refresh()
                spec, steps, metrics = self._spec, tuple(self._steps), tuple(self._metrics)
                lines, logged = tuple(self._lines), self._logged
            if spec is None and not steps and not metrics and not lines and then is None:
                return
            with self.database.session() as session:
                if spec is not None:
                    attempts.record_spec(session, self.claim, spec)
                for step in steps:
                    attempts.record_progress(session, self.claim, step)
                if metrics:
                    attempts.add_metrics(session, self.claim, metrics)
                if lines:
                    attempts.add_log(session, self.claim, lines)
                if then is not None:
                    then(session)
            with self._collecting:
                while len(self._lines) > self._logged - logged:  # what came meanwhile is not written yet
                    self._lines.popleft()
                self._spec = None if self._spec is spec else self._spec
                self._steps = [step for step in self._steps if step not in steps]
                del self._metrics[: len(metrics)]

    def _move(self, stage: Stage, fraction: float, resumed_from: Stage | None = None) -> None:
        """Add a step, in place of an unwritten one of the same stage: so each stage is written at least once."""
        self.course.move(stage, fraction, self.clock(), resumed=resumed_from is not None)
        if self._steps and self._steps[-1].stage is stage:
            resumed_from = resumed_from or self._steps.pop().resumed_from
        self._latest = self._present_step(resumed_from)
        self._steps.append(self._latest)

    def _refresh(self) -> None:
        """Add a step where nothing was reported for so long that the estimate is another one."""
        if self._latest is None or self._steps:
            return
        step, before = self._present_step(None), self._latest.eta_seconds
        if step.eta_seconds is not None and (
            before is None or abs(step.eta_seconds - before) > max(NEWS * before, NEWS_SECONDS)
        ):
            self._latest = step
            self._steps.append(step)

    def _present_step(self, resumed_from: Stage | None) -> Step:
        eta_seconds = self.course.eta_seconds(self.clock())
        return Step(
            stage=self.course.stage,
            overall=self.course.overall,
            fraction=self.course.fraction,
            eta_seconds=eta_seconds,
            eta_error_seconds=None if eta_seconds is None else self.course.eta_error_seconds(),
            resumed_from=resumed_from,
        )
