"""Pages of the service: signing in and out, the files of all pages, the description of the API, workers and queues."""

import base64
import hashlib
import re
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html

from api.dashboard.middleware import SIGN_IN, FormDep, cookie
from api.dashboard.rendering import page, see
from api.http.callers import SESSION_SECONDS, Caller, Session, Unknown, session_of
from api.http.hosts import root_of
from api.http.request_log import POLICY
from api.routes.deps import CallerDep, ReadingSessionDep, ServicesDep
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import scheduling
from replaceme_core.ledger.keys import Keys, hash_of
from replaceme_core.ledger.scheduling import MAX_COUNTED
from replaceme_core.ledger.watching import Workers

router = APIRouter()


FIRST_PAGE = "/ui/jobs"
_PAGE = re.compile(r"/ui/(\.?[A-Za-z0-9/_-])*(\?[!-~]*)?")  # a table ends in .csv
Next = Annotated[str, Query(max_length=2000)]
FILES = "/static-offline-docs"
"""Where `fastapi_offline` serves the scripts of the description."""
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


@router.get("/")
@router.get("/ui")
@router.get("/ui/")
async def start(request: Request) -> Response:
    return see(FIRST_PAGE, request.scope)


@router.get(SIGN_IN)
async def ask_for_key(request: Request, services: ServicesDep, next: Next = FIRST_PAGE) -> Response:
    """The page that asks for a key; where none is needed, the page that was wanted."""
    caller = await services.callers.identify(request.scope)
    if isinstance(caller, Caller):
        return see(_own(next), request.scope)
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
    return see(wanted, request.scope, {"Set-Cookie": cookie(sealed, request.scope)})


@router.post("/ui/sign-out")
def sign_out(request: Request, services: ServicesDep) -> Response:
    """Ends the session here and in every copy of its cookie."""
    session = session_of(request.scope)
    assert session is not None, "the form had its token"
    if session.key_hash is not None:  # else anybody could make the database write
        with services.database.session() as ledger:
            ledger.after_commit.append(services.callers.forget)
            Keys(ledger).end_session(session.id, seconds=SESSION_SECONDS)
    return see(SIGN_IN, request.scope, {"Set-Cookie": cookie("", request.scope, seconds=0)})


def _own(path: str) -> str:
    """`path` if it is one of our pages, else the first one: nobody is sent to another site."""
    return path if _PAGE.fullmatch(path) else FIRST_PAGE


@router.get("/docs")
async def show_swagger(request: Request) -> Response:
    """With the policy of all pages, and what this script needs: its styles, pictures, and the line that starts it."""
    root = root_of(request.scope)
    shown = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title=request.app.title,
        swagger_js_url=f"{root}{FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{FILES}/swagger-ui.css",
        swagger_favicon_url=f"{root}{FILES}/favicon.png",
    )
    own = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _SCRIPT.findall(bytes(shown.body))]
    scripts = " ".join(["script-src 'self'", *(f"'sha256-{digest}'" for digest in own)])
    shown.headers["Content-Security-Policy"] = (
        POLICY.replace("script-src 'self'", scripts)
        .replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
        .replace("img-src 'self'", "img-src 'self' data:")
    )
    return shown


@router.get("/ui/workers")
def show_workers(session: ReadingSessionDep, caller: CallerDep, request: Request) -> Response:
    """Jobs that wait for any worker and for those of each kind, with how many of these are alive and busy."""
    workers = Workers(session).list(owner=caller)
    queued = list(scheduling.read_queue(session).queued.values())
    loads = []
    for kind in (None, *WorkerKind):
        able = [one for one in workers if one.alive and (kind is None or kind in one.kinds)]
        waiting = [job for job in queued if job.worker_kind == kind]
        loads.append(
            {
                "kind": kind,
                "waiting": len(waiting),
                "mine": sum(job.owner == caller for job in waiting),
                "alive": len(able),
                "busy": sum(one.busy for one in able),
            }
        )
    return page(
        "workers.html",
        request.scope,
        workers=workers,
        loads=loads,
        is_cut_off=len(queued) > MAX_COUNTED,
        most_counted=MAX_COUNTED,
        alive=sum(one.alive for one in workers),
    )
