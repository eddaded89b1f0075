"""A new job: a form that shows the plan while it is filled in, and submits it."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse

from api.auth.caller import caller_of
from api.deps import CallerDep, PlanningDep, SubmitterDep
from api.http.problems import http_error_of
from api.schemas.plans import PlanBody
from api.web.forms import FormDep, PageRoute, key_of
from api.web.job_form import DEFAULTS, FIELDS, FormErrors, read_request, to_body
from api.web.rendering import page, root_of
from replaceme_core.errors import InvalidInput, ReplaceMeError
from replaceme_core.request.fields import BUILTIN_TEXTS
from replaceme_core.request.method_traits import Method

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_DEVICES = ("cpu", "cuda")


@router.get("/ui/new")
def ask(request: Request) -> Response:
    """The form, with what is usual filled in."""
    return _form(request, {**dict.fromkeys(FIELDS, ""), **DEFAULTS}, FormErrors(), key=str(uuid4()))


@router.post("/ui/plan")
async def plan_as_typed(form: FormDep, planning: PlanningDep, request: Request) -> Response:
    """The plan for what the form holds, with an error for each field that has one."""
    body = to_body(form)
    found = read_request(body)
    errors = found if isinstance(found, FormErrors) else FormErrors()
    plan = None
    if not isinstance(found, FormErrors):
        try:
            plan = PlanBody.of(await planning.plan(found, caller=caller_of(request.scope)))
        except InvalidInput as error:
            errors.add_refusal(error)
        except ReplaceMeError as error:
            errors.others.append(_explained(error))
        else:
            for refusal in plan.refusals:
                errors.add(refusal.field, refusal.message)
    is_empty = not form.get("model", "").strip()
    if is_empty:
        errors.by_field.pop("model", None)  # nobody has got it wrong yet
    return await run_in_threadpool(
        page,
        "plan.html",
        request.scope,
        plan=plan,
        errors=errors,
        fields=FIELDS,
        is_empty=is_empty,
        body=json.dumps(body, indent=2, ensure_ascii=False),
    )


@router.post("/ui/new")
async def submit(form: FormDep, submitter: SubmitterDep, caller: CallerDep, request: Request) -> Response:
    """The page of the new job; the form again, with its errors, if it is refused. Sent twice, it makes one job."""
    found = read_request(to_body(form))
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    if not isinstance(found, FormErrors):
        errors = FormErrors()
        try:
            submitted = await submitter.submit(found, key=key_of(form), owner=caller, scope=request.scope)
        except InvalidInput as error:
            errors.add_refusal(error)
        except ReplaceMeError as error:
            status = http_error_of(error).status
            if status is HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            errors.others.append(_explained(error))
        else:
            there = f"{root_of(request.scope)}/ui/jobs/{submitted.job.id}"
            return RedirectResponse(there, status_code=HTTPStatus.SEE_OTHER)
        found = errors
    values = {name: form.get(name, "") for name in FIELDS}
    return await run_in_threadpool(_form, request, values, found, key=str(uuid4()), status=status)


def _form(
    request: Request,
    values: Mapping[str, str],
    errors: FormErrors,
    *,
    key: str,
    status: HTTPStatus = HTTPStatus.OK,
) -> Response:
    return page(
        "new_job.html",
        request.scope,
        status=status,
        values=values,
        errors=errors,
        key=key,
        texts=BUILTIN_TEXTS,
        methods=list(Method),
        devices=_DEVICES,
    )


def _explained(error: ReplaceMeError) -> str:
    """What has happened, for a person, without what only the log may say."""
    return f"{http_error_of(error).title}: {error.message}"
