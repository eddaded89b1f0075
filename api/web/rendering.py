"""Templates into pages. Every value is escaped, and a name that a template does not get is an error."""

from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse
from starlette.types import Scope as AsgiScope

from api.auth.caller import known_caller
from api.auth.sessions import session_of
from api.web.figures import FILTERS
from api.web.static_files import address_of
from replaceme_core.ledger.access.records import Scope

_TEMPLATES = Path(__file__).parent / "templates"


@cache
def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {one.__name__: one for one in FILTERS}
    return found


def root_of(scope: AsgiScope) -> str:
    """The path under which the service is reached, usually ""."""
    root: str = scope.get("root_path", "")
    return root.rstrip("/")


def page(
    template: str,
    scope: AsgiScope,
    *,
    status: HTTPStatus = HTTPStatus.OK,
    headers: Mapping[str, str] | None = None,
    **values: Any,
) -> HTMLResponse:
    """A page, or a part of one, for the caller of a request.

    Templates also get `root`, `csrf_token`, `is_signed_in`, `may_write` and `static`, the address of a file.
    """
    root, session, caller = root_of(scope), session_of(scope), known_caller(scope)
    text = (
        _environment()
        .get_template(template)
        .render(
            **values,
            root=root,
            path=str(scope["path"]).removeprefix(root),
            csrf_token="" if session is None else session.csrf_token,
            is_signed_in=session is not None and session.key_hash is not None,
            may_write=caller is not None and Scope.JOBS_WRITE in caller.scopes,
            static=lambda name: root + address_of(name),
        )
    )
    return HTMLResponse(text, status_code=status, headers=dict(headers or {}))
