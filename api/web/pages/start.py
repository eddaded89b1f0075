"""The way in and out: the start page, signing in with an API key, signing out, and the files of all pages."""

import re
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from api.auth.caller import Caller
from api.auth.callers import Unknown
from api.auth.sessions import SESSION_SECONDS, Session, session_of
from api.deps import ServicesDep
from api.web.forms import FormDep, PageRoute
from api.web.middleware import SIGN_IN, cookie
from api.web.rendering import page, root_of
from api.web.static_files import static_files
from replaceme_core.ledger.access.key_text import hash_of
from replaceme_core.ledger.access.keys import Keys

router = APIRouter(route_class=PageRoute, include_in_schema=False)

FIRST_PAGE = "/ui/jobs"
_A_YEAR = "public, max-age=31536000, immutable"
_PAGE = re.compile(r"/ui/[A-Za-z0-9/_-]*(\?[!-~]*)?")
Next = Annotated[str, Query(max_length=2000)]


@router.get("/")
@router.get("/ui")
@router.get("/ui/")
async def start(request: Request) -> Response:
    return _see(FIRST_PAGE, request)


@router.get(SIGN_IN)
async def ask_for_key(request: Request, services: ServicesDep, next: Next = FIRST_PAGE) -> Response:
    """The page that asks for a key; where none is needed, the page that was wanted."""
    caller = await services.callers.identify(request.scope)
    if isinstance(caller, Caller):
        return _see(_own(next), request)
    return page("sign_in.html", request.scope, next=_own(next), reason=caller.detail, error=None)


@router.post(SIGN_IN)
async def sign_in(form: FormDep, request: Request, services: ServicesDep) -> Response:
    text, wanted = form.get("key", "").strip(), _own(form.get("next", ""))
    found = await services.callers.holder_of(text)
    if isinstance(found, Unknown):
        return page(
            "sign_in.html",
            request.scope,
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
            next=wanted,
            reason=None,
            error=found.detail if text else "enter a key",
        )
    sealed = services.sessions.seal(Session.start(hash_of(text)))  # a new one: what was known before opens nothing
    return _see(wanted, request, {"Set-Cookie": cookie(sealed, request.scope)})


@router.post("/ui/sign-out")
def sign_out(request: Request, services: ServicesDep) -> Response:
    """Ends the session here and in every copy of its cookie."""
    session = session_of(request.scope)
    assert session is not None, "the form had its token"
    if session.key_hash is not None:  # else anybody could make the database write
        with services.database.session() as ledger:
            ledger.after_commit(services.callers.forget)
            Keys(ledger).end_session(session.id, seconds=SESSION_SECONDS)
    return _see(SIGN_IN, request, {"Set-Cookie": cookie("", request.scope, seconds=0)})


@router.get("/ui/static/{version}/{name}")
async def get_file(version: str, name: str) -> Response:
    """A style sheet or a script. Another version than the present one is 404, so that no cache keeps it as that."""
    found = static_files().get(name)
    if found is None or found.version != version:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return Response(found.content, media_type=found.media_type, headers={"Cache-Control": _A_YEAR})


def _own(path: str) -> str:
    """`path` if it is one of our pages, else the first one: nobody is sent to another site."""
    return path if _PAGE.fullmatch(path) else FIRST_PAGE


def _see(path: str, request: Request, headers: dict[str, str] | None = None) -> Response:
    return RedirectResponse(f"{root_of(request.scope)}{path}", status_code=HTTPStatus.SEE_OTHER, headers=headers)
