"""`replaceme doctor`: what this machine has, and whether what the settings name answers.

Nothing secret is in its output: it can be attached to an issue.
"""

import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import closing
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.table import Table

from api.cli.launch import check_broker
from api.cli.output.console import make_console, print_json
from replaceme_core.errors import AccessDenied, InvalidInput, ReplaceMeError, RepositoryNotFound
from replaceme_core.hardware import has_native_bfloat16, look_at_torch, total_memory
from replaceme_core.hub.port import DIRECTORY_PREFIX, RepositoryKind
from replaceme_core.ledger.database import Database, parse_url
from replaceme_core.ledger.migrate import check_migrated
from replaceme_core.ledger.watching import Workers
from replaceme_core.library_errors import free_space
from replaceme_core.report.figures import size
from replaceme_core.runner.sandbox import SandboxMode
from replaceme_core.settings import NO_SETTING, Settings, unknown_settings
from replaceme_core.wording import counted

_NOBODY = "replaceme/no-such-model"
_LEAST_FREE = 10 * 10**9
"""Bytes of disk space, below which little can be compressed."""


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(NamedTuple):
    """`text` is one sentence about the thing called `name`."""

    name: str
    state: State
    text: str


def findings(settings: Settings) -> Iterator[Finding]:
    """What is found, one after the other. Errors that are expected are problems."""
    for look_at in _LOOKS:
        name = look_at.__name__.removeprefix("_")
        try:
            for state, text in look_at(settings):
                yield Finding(name, state, text)
        except ReplaceMeError as error:
            yield Finding(name, State.PROBLEM, error.explained)
        except OSError as error:  # of a place that the settings name
            yield Finding(name, State.PROBLEM, f"{error.filename}: {error.strerror}")


def _software(_: Settings) -> Iterator[tuple[State, str]]:
    yield State.OK, f"replaceme {version('replaceme')}, Python {platform.python_version()}, {platform.platform()}"


def _torch(_: Settings) -> Iterator[tuple[State, str]]:
    try:
        found = look_at_torch(os.environ)
    except InvalidInput as error:
        yield State.WARNING, f"this machine can run the API, but no worker: {error.message}"
        return
    build = f"CUDA {found.cuda}" if found.cuda else f"ROCm {found.hip}" if found.hip else "CPU only"
    yield State.OK, f"torch {found.version}, built for {build}"
    for one in found.devices:
        is_fast = "bfloat16 in hardware" if one.bfloat16 else "no bfloat16 in hardware"
        state = State.OK if one.bfloat16 else State.WARNING
        yield state, f"{one.name}: {size(one.memory)}, {size(one.free)} free; {is_fast}"
    if not found.devices:
        native = has_native_bfloat16()
        text = "no accelerator; jobs run on the CPU, which multiplies bfloat16 " + ("itself" if native else "slowly")
        yield State.OK if native else State.WARNING, text


def _settings(_: Settings) -> Iterator[tuple[State, str]]:
    for name in unknown_settings():
        yield State.WARNING, NO_SETTING % name


def _memory(_: Settings) -> Iterator[tuple[State, str]]:
    yield State.OK, f"{size(total_memory())} for processes, {counted(os.cpu_count() or 1, 'cores')}"


def _disk(settings: Settings) -> Iterator[tuple[State, str]]:
    if settings.resolved_data.is_file():
        raise InvalidInput(f"the data directory {settings.resolved_data} is a file; choose another with --data")
    try:
        free = free_space(settings.resolved_data)
    except OSError as error:
        raise InvalidInput(f"the data directory cannot be read: {error.strerror}") from error
    yield State.OK if free >= _LEAST_FREE else State.WARNING, f"{size(free)} free for the data directory"


def _sandbox(settings: Settings) -> Iterator[tuple[State, str]]:
    found = settings.confinement()
    yield State.WARNING if found.sandbox.mode is SandboxMode.NONE else State.OK, found.sandbox.describe()
    memory = "no limit of memory" if found.memory is None else f"memory limit {found.memory.describe()}"
    yield State.OK, memory


def _hub(settings: Settings) -> Iterator[tuple[State, str]]:
    where = "a directory" if settings.hub_address is None else settings.hub_address
    hub = settings.open_hub()
    try:
        hub.resolve(_NOBODY, kind=RepositoryKind.MODEL)
    except RepositoryNotFound:
        pass
    except AccessDenied as error:
        yield State.PROBLEM, error.message
    yield State.OK, f"{where} answers"
    if settings.hub_address is not None and settings.hub_write_token is None:
        yield State.WARNING, "there is no write token: results are published only with credentials of their owners"
    else:
        hub.namespace()


def _database(settings: Settings) -> Iterator[tuple[State, str]]:
    url = parse_url(settings.resolved_database_url)
    kind = url.get_backend_name()
    if kind == "sqlite" and not Path(url.database or "").exists():
        yield State.WARNING, "SQLite, not made yet: `replaceme serve` does that"
        return
    with closing(Database(settings.resolved_database_url)) as database, database.session(read_only=True) as session:
        check_migrated(session)
        alive = Workers(session).count_alive()
    workers = ", ".join(f"{count} for {kind}" for kind, count in alive.items())
    yield State.OK, f"{kind} answers and has all migrations; live workers: {workers}"


def _broker(settings: Settings) -> Iterator[tuple[State, str]]:
    check_broker(settings)
    yield State.OK, "takes messages"


_LOOKS = (_software, _settings, _torch, _memory, _disk, _sandbox, _hub, _database, _broker)
"""What is looked at, in this order; each is called as its function is."""


def look(settings: Settings, *, as_json: bool) -> bool:
    """Print what is found; whether there is no problem."""
    if (hub := settings.embedded_hub) is not None:
        settings = settings.model_copy(update={"hub": f"{DIRECTORY_PREFIX}{hub}"})
    found = list(findings(settings))
    is_well = all(one.state is not State.PROBLEM for one in found)
    if as_json:
        print_json({"ok": is_well, "findings": [one._asdict() for one in found]})
    else:
        print_findings(found)
    return is_well


def print_findings(rows: Iterable[tuple[str, str, str]]) -> None:
    """A table of names, states and what was found; what is not ok stands out."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "State", "What was found"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row, style="" if row[1] == State.OK else "bold")
    make_console(stderr=False).print(table)
