"""`replaceme worker`: a Celery worker for each GPU, or one for the CPU, watched until a signal comes.

Each sees its own GPU only (`CUDA_VISIBLE_DEVICES`), so that whatever it and its runners do, they do it there. One that
dies is started again. Standard output carries one line once all have come up, `ready NAME ...`.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from api.launch.child_processes import (
    WORKER_GRACE_SECONDS,
    WORKER_READY,
    Ended,
    Happening,
    Part,
    Ready,
    ServiceStopped,
    Signalled,
    signals_to,
    worker_command,
)
from api.launch.startup import check_broker, child_environment, prepare_data
from replaceme_core.admission.hardware import count_gpus
from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.errors import InvalidInput
from replaceme_core.settings import Settings

STARTUP_SECONDS = 120.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0  # one that lived for longer has no history of early deaths
VISIBLE = "CUDA_VISIBLE_DEVICES"
_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Post:
    """A worker's place: its name, the jobs it serves beside those for any worker, and the GPUs it sees."""

    name: str
    worker_kind: WorkerKind
    visible: str


def posts(gpus: str | None, environ: Mapping[str, str], *, count: Callable[[], int]) -> list[Post]:
    """One for each GPU that `gpus` names ("all", or numbers such as "0,1"), or one for the CPU where that is `None`.

    Numbers are those by which CUDA knows them: of the GPUs that CUDA_VISIBLE_DEVICES lets this process see, if it is
    set. Raises `InvalidInput` for a number that is not there.
    """
    if gpus is None:
        return [Post(name="cpu", worker_kind=WorkerKind.CPU, visible="")]
    wanted = None if gpus.strip() == "all" else _numbers(gpus)
    found = count()
    if not found:
        raise InvalidInput("torch sees no GPU on this machine; without --gpus a worker uses the CPU", field="gpus")
    for number in wanted or ():
        if number >= found:
            there = "GPU 0" if found == 1 else f"GPUs 0 to {found - 1}"
            raise InvalidInput(f"there is no GPU {number}: this machine has {there}", field="gpus", value=gpus)
    seen = [name.strip() for name in environ.get(VISIBLE, "").split(",") if name.strip()]
    names = seen[:found] if seen else [str(number) for number in range(found)]
    return [
        Post(name=f"gpu{number}", worker_kind=WorkerKind.GPU, visible=names[number])
        for number in (range(found) if wanted is None else wanted)
    ]


def _numbers(gpus: str) -> list[int]:
    parts = [part.strip() for part in gpus.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        raise InvalidInput(f"expected all, or numbers of GPUs such as 0,1; got {gpus!r}", field="gpus", value=gpus)
    numbers = [int(part) for part in parts]
    if len(set(numbers)) != len(numbers):
        raise InvalidInput(f"a GPU is named twice in {gpus!r}", field="gpus", value=gpus)
    return numbers


@dataclass
class _Watched:
    """A post and the worker on it. `pause` is what the next start has to wait, in seconds."""

    post: Post
    part: Part
    started_at: float = field(default_factory=time.monotonic)
    pause: float = FIRST_PAUSE_SECONDS
    again_at: float | None = None


class Workers:
    """The workers on `posts`, while `run` runs."""

    def __init__(self, posts: Sequence[Post], *, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._environment = child_environment(settings, environ)
        self._happenings: queue.SimpleQueue[Happening] = queue.SimpleQueue()  # put() is safe in a signal handler
        self._posts = posts
        self._watched: dict[str, _Watched] = {}

    def run(self, *, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """Until SIGTERM, SIGINT or SIGHUP, which the workers get as SIGTERM.

        `say` writes a line on standard output, `warn` on standard error. Raises `ServiceStopped` when one does not
        come up at the start.
        """
        with signals_to(self._happenings):
            try:
                for post in self._posts:
                    self._watched[post.name] = _Watched(post=post, part=self._start(post))
                self._watch(say, warn)
            finally:
                self._stop()

    def _watch(self, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
        waiting_for = {post.name for post in self._posts}
        deadline = time.monotonic() + STARTUP_SECONDS
        while True:
            try:
                happening = self._happenings.get(timeout=self._next(deadline if waiting_for else None))
            except queue.Empty:
                if waiting_for and time.monotonic() >= deadline:
                    late = ", ".join(sorted(waiting_for))
                    raise ServiceStopped(
                        f"no worker came up on {late} within {STARTUP_SECONDS:.0f} seconds; the log above says more"
                    ) from None
                self._start_again()
                continue
            match happening:
                case Ready(name=name):
                    was_waited_for = name in waiting_for
                    waiting_for.discard(name)
                    if was_waited_for and not waiting_for:
                        say(f"ready {' '.join(post.name for post in self._posts)}")
                case Ended(name=name, status=status) if name in waiting_for:
                    raise ServiceStopped(
                        f"the worker on {name} ended with exit status {status} before it had come up; "
                        "the log above says more"
                    )
                case Ended(name=name, status=status):
                    self._mourn(self._watched[name], status, warn)
                case Signalled():
                    return

    def _next(self, deadline: float | None) -> float | None:
        """Seconds until something is to be done without being told."""
        due = [watched.again_at for watched in self._watched.values() if watched.again_at is not None]
        due += [] if deadline is None else [deadline]
        return max(min(due) - time.monotonic(), 0) if due else None

    def _mourn(self, watched: _Watched, status: int, warn: Callable[[str], None]) -> None:
        now = time.monotonic()
        if now - watched.started_at > LONGEST_PAUSE_SECONDS:
            watched.pause = FIRST_PAUSE_SECONDS
        watched.again_at = now + watched.pause
        warn(
            f"the worker on {watched.post.name} ended with exit status {status}; "
            f"it is started again in {watched.pause:.0f} s"
        )
        watched.pause = min(2 * watched.pause, LONGEST_PAUSE_SECONDS)

    def _start_again(self) -> None:
        for watched in self._watched.values():
            if watched.again_at is not None and watched.again_at <= time.monotonic():
                watched.again_at = None
                watched.part.stop()  # it has ended: this lets go of what is left of it
                watched.part = self._start(watched.post)
                watched.started_at = time.monotonic()

    def _start(self, post: Post) -> Part:
        return Part(
            post.name,
            worker_command("--hostname", f"{post.name}-{os.getpid()}@%h", "--queues", post.worker_kind.value),
            environment={**self._environment, VISIBLE: post.visible},
            grace_seconds=self._settings.drain_seconds + WORKER_GRACE_SECONDS,
            tell=self._happenings.put,
            ready_line=WORKER_READY,
        )

    def _stop(self) -> None:
        """All at once, for each may have a job to finish. A second signal ends the patience."""
        parts = [watched.part for watched in self._watched.values()]
        endings = [threading.Thread(target=part.stop) for part in parts]
        for ending in endings:
            ending.start()
        while any(ending.is_alive() for ending in endings):
            try:
                happening = self._happenings.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(happening, Signalled):
                for part in parts:
                    if part.is_running():
                        part.hurry()
        for ending in endings:
            ending.join()


def work(
    *,
    gpus: str | None,
    settings: Settings,
    environ: Mapping[str, str],
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Run workers until a signal. Raises `InvalidInput`, `QueueUnreachable`, and as `Workers.run` does."""
    places = posts(gpus, environ, count=lambda: count_gpus(environ))
    prepare_data(settings.resolved_data)
    check_broker(settings)
    Workers(places, settings=settings, environ=environ).run(say=say, warn=warn)
