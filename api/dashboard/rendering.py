"""Templates into pages: the files of the dashboard, numbers as people read them, escaped values."""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.types import Scope as AsgiScope

from api.http.callers import known_caller, session_of
from api.http.hosts import path_of, root_of
from replaceme_core.ledger.keys import OF_WEBHOOKS, Scope
from replaceme_core.report.figures import (
    NONE,
    PERPLEXITY,
    change,
    duration,
    number,
    percent,
    size,
    time_left,
    time_range,
)
from replaceme_core.report.page import templates_in
from replaceme_core.report.reading import Report
from replaceme_core.report.view import wanted_removal, wanted_text
from replaceme_core.request.gate import limits_in_words
from replaceme_core.request.removal import block_ranges
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.wording import counted

STATIC = "/ui/static/"
FILES = Path(__file__).parent / "static"
_VERSION_DIGITS = 12
_TEMPLATES = Path(__file__).parent / "templates"


@cache
def static_root() -> str:
    """The address of the files, below the root of the service: with their digest, so that browsers may keep them."""
    content = b"".join(path.read_bytes() for path in sorted(FILES.rglob("*.*")))
    return f"{STATIC}{hashlib.sha256(content).hexdigest()[:_VERSION_DIGITS]}"


def between(start: datetime | None, end: datetime | None) -> str:
    """The time from one moment to another, or to now; nothing before the start, which is by the database's clock."""
    return NONE if start is None else duration(max(((end or datetime.now(UTC)) - start).total_seconds(), 0))


def moment(at: datetime | None) -> str:
    """
    >>> moment(datetime(2026, 11, 27, 8, 5, tzinfo=UTC))
    '2026-11-27 08:05:00 UTC'
    """
    return NONE if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def measured(value: float, unit: str) -> str:
    """A measured value with its unit.

    >>> measured(269_060_552, "bytes"), measured(75, "s"), measured(12.3456, "ratio"), measured(1, "answers")
    ('269 MB', '1 min 15 s', '12.35', '1 answer')
    """
    match unit:
        case "bytes":
            return size(value)
        case "s":
            return duration(value)
        case "ratio" | "flag" | "":
            return number(value)
        case _:
            return counted(value, unit, shown=number(value))


def perplexity(value: float | None) -> str:
    return NONE if value is None else PERPLEXITY(value)


def removal(spec: CompressionSpec) -> str:
    return wanted_removal(Report(spec.model_dump(mode="json")))


def calibration(spec: CompressionSpec) -> str:
    return wanted_text(Report(spec.model_dump(mode="json")))


def method(spec: CompressionSpec) -> str:
    """The name of the method, or who decides it."""
    return str(spec.method.name or "decided by the worker")


def gate(spec: CompressionSpec) -> str:
    """The criteria of a gate, such as "size_ratio at most 0.9"."""
    criteria = {} if spec.gate is None else spec.gate.criteria
    return "; ".join(f"{name} {limits_in_words(one.min, one.max)}" for name, one in criteria.items()) or NONE


def sentence(text: str) -> str:
    """
    >>> sentence("the API has no key")
    'The API has no key.'
    """
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "!", "?")) else ".")


def short_id(job_id: str) -> str:
    """The first part of an id."""
    return job_id.partition("-")[0]


def pairs(values: Mapping[str, object], between: str = ": ") -> str:
    """
    >>> pairs({"worker": "a:1", "stage": "solve"})
    'worker: a:1, stage: solve'
    """
    return ", ".join(f"{name}{between}{value}" for name, value in values.items())


def query(pairs: Iterable[tuple[str, object]]) -> str:
    """The query of an address; a list is repeated, and what is empty is left out.

    >>> query([("status", ["queued", "running"]), ("model", "a/b"), ("cursor", "")])
    'status=queued&status=running&model=a%2Fb'
    """
    return urlencode([(name, value) for name, value in pairs if value], doseq=True)


FILTERS = (
    *(time_left, time_range, between, moment, size, number, counted, perplexity, measured, change),
    *(percent, removal, calibration, method, gate, sentence, short_id, pairs, block_ranges, query),
)


@cache
def _environment() -> Environment:
    found = templates_in(_TEMPLATES)
    found.filters |= {one.__name__: one for one in FILTERS}
    return found


def see(path: str, scope: AsgiScope, headers: Mapping[str, str] | None = None) -> RedirectResponse:
    """A redirect to a page, `path` below the root of the service."""
    return RedirectResponse(f"{root_of(scope)}{path}", status_code=HTTPStatus.SEE_OTHER, headers=headers)


def page(
    template: str,
    scope: AsgiScope,
    *,
    status: HTTPStatus = HTTPStatus.OK,
    headers: Mapping[str, str] | None = None,
    **values: Any,
) -> HTMLResponse:
    """A page, or a part of one, for the caller of a request.

    Templates also get `root`, `csrf_token`, `is_signed_in`, what the caller may do, and `static`: where the files are.
    """
    root, session, caller = root_of(scope), session_of(scope), known_caller(scope)
    text = (
        _environment()
        .get_template(template)
        .render(
            **values,
            root=root,
            path=path_of(scope),
            csrf_token="" if session is None else session.csrf_token,
            is_signed_in=session is not None and session.key_hash is not None,
            may_write=caller is not None and Scope.JOBS_WRITE in caller.scopes,
            may_change_webhooks=caller is not None and {Scope.WEBHOOKS_WRITE, OF_WEBHOOKS} <= set(caller.scopes),
            is_admin=caller is not None and Scope.ADMIN in caller.scopes,
            static=f"{root}{static_root()}",
        )
    )
    return HTMLResponse(text, status_code=status, headers=dict(headers or {}))
