"""A new job: a form that shows the plan while it is filled in, and submits it.

Its fields become the body that `POST /jobs` takes, and errors of that body go back to the fields."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from api.dashboard.middleware import FormDep, key_of
from api.dashboard.rendering import page, see
from api.http.callers import caller_of
from api.http.problems import http_error_of
from api.http.requests import number
from api.request_bodies import SWEEP, JobRequest, checked
from api.routes.deps import CallerDep, ReadingSessionDep, ServicesDep
from api.routes.jobs import JobId
from api.routes.plans import EstimateBody, PlanBody
from replaceme_core.errors import InvalidInput, ReplaceMeError
from replaceme_core.ledger import reading
from replaceme_core.request.calibration import CalibrationSource
from replaceme_core.request.fields import BUILTIN_TEXTS
from replaceme_core.request.gate import read_criteria, written_criteria
from replaceme_core.request.method import Method
from replaceme_core.request.removal import read_blocks
from replaceme_core.request.spec import CompressionSpec

DEFAULTS: Mapping[str, str] = {
    "ratio": "0.25",
    "calibration": "builtin:general",
    "evaluate": "on",
    "private": "on",
    "priority": "5",
}
"""What a new form holds; a field that is not here is empty."""
_NUMBER = re.compile(r"-?(\d{1,18}|\d{0,18}\.\d{1,30})([eE][+-]?\d{1,2})?")
_MOST_MODELS = 50
_SAME = 1e-6
router = APIRouter()


@dataclass(kw_only=True)
class FormErrors:
    """What is wrong, by field; `others` are about no field of the form. `status` is that of a page that shows them."""

    by_field: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    status: HTTPStatus = HTTPStatus.UNPROCESSABLE_ENTITY

    def add(self, path: str | None, message: str) -> None:
        """Add what is wrong with the value at a path of the body; of several about a field, the first is kept."""
        name = field_of(path or "")
        if name is None:
            self.others.append(f"{path}: {message}" if path and path != "body" else message)
        else:
            self.by_field.setdefault(name, message)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Add what is raised within, but for a fault of the service."""
        try:
            yield
        except InvalidInput as error:
            self.add(error.field, error.message)
        except ReplaceMeError as error:
            shown = http_error_of(error)
            if shown.status is HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            self.status = shown.status
            self.others.append(f"{shown.title}: {error.message}")

    def __bool__(self) -> bool:
        return bool(self.by_field or self.others)


def read_request(body: Mapping[str, object], errors: FormErrors) -> JobRequest | None:
    """The request, by the rules of `POST /jobs`; else `errors` has what is wrong with it."""
    request, found = checked(JobRequest, body)
    for one in found:
        errors.add(one["field"], one["message"])
    for name, read in (("gate", _gate), ("labels", read_labels)):
        unread = body.get(name)
        if request is None and isinstance(unread, str):
            errors.by_field[name] = read(unread)[1]
    return request


def _gate(text: str) -> tuple[object, str]:
    """The criteria; where one of them cannot be read, the text itself, which is not a gate, and what is wrong."""
    try:
        return read_criteria(_parts(text)), ""
    except ValueError as error:
        return text, str(error)


def read_labels(text: str) -> tuple[object, str]:
    """The labels; where one of them cannot be read, the text itself, and what is wrong.

    Of a name with several values there are all of them, which the validation then refuses.

    >>> read_labels("team=search, run=1, run=2")
    ({'team': 'search', 'run': '1, 2'}, '')
    """
    found: dict[str, list[str]] = {}
    for part in _parts(text):
        name, sign, value = part.partition("=")
        if not sign:
            return text, f"expected NAME=VALUE, got {part!r}"
        found.setdefault(name.strip(), []).append(value.strip())
    return {name: ", ".join(dict.fromkeys(values)) for name, values in found.items()}, ""


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _number(text: str) -> int | float | str:
    """The number in a text, or the text.

    >>> _number("1E3"), _number(".5"), _number(str(0.003 / 7)), _number("some")
    (1000, 0.5, 0.0004285714285714286, 'some')
    """
    return number(text) if _NUMBER.fullmatch(text) else text


_PLACES: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "model": ("model.repo_id", str),
    "revision": ("model.revision", str),
    "ratio": ("ratio", lambda text: [_number(part) for part in _parts(text)] if "," in text else _number(text)),
    "drop": ("drop", read_blocks),
    "calibration": ("calibration.dataset", str),
    "samples": ("calibration.samples", _number),
    "max_length": ("calibration.max_length", _number),
    "self_generated": ("calibration.self_generated", _number),
    "general": ("calibration.general", _number),
    "repeated": ("calibration.repeated", _number),
    "method": ("method", str),
    "heal_tokens": ("heal.tokens", _number),
    "heal_dataset": ("heal.dataset", str),
    "heal_learning_rate": ("heal.learning_rate", _number),
    "heal_time_budget": ("heal.time_budget_seconds", _number),
    "output": ("output.repo_id", str),
    "private": ("output.private", bool),
    "device": ("compute.device", str),
    "evaluate": ("evaluation.enabled", bool),
    "tasks": ("evaluation.tasks", _parts),
    "gate": ("gate", lambda text: _gate(text)[0]),
    "priority": ("priority", _number),
    "labels": ("labels", lambda text: read_labels(text)[0]),
    "webhook": ("webhook.url", str),
    "credential": ("credential", str),
    "max_runtime_seconds": ("max_runtime_seconds", _number),
}
"""Where the value of each field is in the body, at most in one of its parts, and what reads it."""
_ALWAYS, _USUALLY = ("model", "ratio", "calibration"), ("private", "evaluate")
"""What is in the body though it is empty; and what is checked by default, and left out where it is."""
FIELDS = (*_PLACES, "deepest")
_PARTLY_SHOWN = ("calibration", "method", "heal_dataset")
"""Fields that show a name alone of what may have options, such as the shares of a mix."""


def to_body(form: Mapping[str, str]) -> dict[str, object]:
    """The body of `POST /jobs`. What should be a number and is not stays a text, which the validation then explains.

    A form that was filled in from a job has its specification as `base`: what no field shows is taken from there.
    """
    given = {name: form.get(name, "").strip() for name in FIELDS}
    body = _not_shown(form.get("base", ""), given)
    if not given["heal_tokens"] and "heal" in body:  # unlike the job before, it is not trained
        del body["heal"]
        given |= {name: "" for name, (path, _) in _PLACES.items() if path.startswith("heal.")}
    is_same_text = not {"dataset", "sources"}.isdisjoint(body.get("calibration", ()))
    filled = [name for name in _PLACES if name in _ALWAYS or bool(given[name]) != (name in _USUALLY)]
    if given["drop"]:
        filled.remove("ratio")
    for name in filled:
        path, read = _PLACES[name]
        part, _, last = path.rpartition(".")
        (body.setdefault(part, {}) if part else body).setdefault(last, read(given[name]))
    if given["deepest"] and "ratio" in body:
        body["ratio"] = {"max": body["ratio"]}
    if "," in given["calibration"] and not is_same_text:  # an equal mix
        body["calibration"]["sources"] = [{"dataset": name} for name in _parts(given["calibration"])]
    if "sources" in body["calibration"]:
        del body["calibration"]["dataset"]
    return body


def _not_shown(base: str, given: Mapping[str, str]) -> dict[str, Any]:
    """What a form with the values `given` does not show of the specification `base`, in JSON; empty: of none."""
    try:
        spec = CompressionSpec.model_validate_json(base)
    except ValidationError:
        return {}
    body = spec.model_dump(mode="json", exclude_defaults=True, exclude={"output"})
    before = to_values(spec)
    if given["calibration"] != before["calibration"]:
        of_text = (*CalibrationSource.model_fields, "sources")
        body["calibration"] = {name: value for name, value in body["calibration"].items() if name not in of_text}
    for name, (path, _) in _PLACES.items():
        if name not in _PARTLY_SHOWN or given[name] != before[name]:
            part, _, last = path.rpartition(".")
            (body.get(part, {}) if part else body).pop(last, None)
    return body


def field_of(path: str) -> str | None:
    """The field of the form for a path of the body.

    >>> field_of("calibration.samples"), field_of("drop.1"), field_of("evaluation.tasks.1"), field_of("compute.threads")
    ('samples', 'drop', 'tasks', None)
    """
    known = (name for name, (place, _) in _PLACES.items() if f"{path}.".startswith(f"{place}."))
    first = path.partition(".")[0]
    return next(known, first if first in _PLACES else None)


def to_values(spec: CompressionSpec) -> dict[str, str]:
    """What the form holds for the specification of a job: `to_body` of it and its `base` asks for the same."""
    found, body = dict.fromkeys(FIELDS, ""), spec.model_dump(mode="json")
    for name, (path, _) in _PLACES.items():
        part, _, last = path.rpartition(".")
        found[name] = _as_typed(((body.get(part) or {}) if part else body).get(last))
    sources = spec.calibration.sources or ()
    found["calibration"] = ", ".join(one.name for one in sources) or found["calibration"]
    found["method"] = _as_typed(body["method"]["name"])
    found["heal_dataset"] = "" if spec.heal is None or spec.heal.source is None else spec.heal.source.name
    found["gate"] = ", ".join(written_criteria(spec.gate))
    if spec.searches:
        found["ratio"], found["deepest"] = _as_typed(spec.greatest_ratio), "on"
    return found


def _as_typed(value: object) -> str:
    """
    >>> _as_typed([12, 13]), _as_typed({"run": "1"}), _as_typed(True), _as_typed(0.5), _as_typed(None)
    ('12, 13', 'run=1', 'on', '0.5', '')
    """
    match value:
        case None | False:
            return ""
        case True:
            return "on"
        case list():
            return ", ".join(map(str, value))
        case Mapping():
            return ", ".join(f"{name}={each}" for name, each in value.items())
    return str(value)


@router.get("/ui/new")
def ask(session: ReadingSessionDep, caller: CallerDep, request: Request, job: JobId | None = None) -> Response:
    """The form, with what is usual filled in, or what a `job` was asked for, but its output."""
    values = DEFAULTS
    if job is not None:
        spec = reading.get(session, job, owner=caller).spec
        values = {**to_values(spec), "output": "", "base": spec.model_dump_json(exclude_defaults=True)}
    return _form(request, values, FormErrors(), models=reading.models(session, owner=caller, limit=_MOST_MODELS))


@router.post("/ui/plan")
async def plan_as_typed(form: FormDep, services: ServicesDep, request: Request) -> Response:
    """The plan for what the form holds, with an error for each field that has one."""
    body, errors, plan = to_body(form), FormErrors(), None
    found, count = read_request(body, errors), 0
    if found is not None:
        caller = caller_of(request.scope)
        with errors.collected():
            await run_in_threadpool(services.submitter.check_webhook, found.webhook, caller)
        with errors.collected():
            count = len(found.each())
            found = max(found.each(), key=lambda one: one.greatest_ratio or 0.0)  # of a sweep, the deepest cut
            plan = PlanBody.from_plan(await services.planning.plan(found, caller=caller))
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
        count=count,
        rounded=None if found is None or plan is None or plan.estimate is None else _rounded(found, plan.estimate),
        errors=errors,
        fields=FIELDS,
        is_empty=is_empty,
        body=json.dumps(body, indent=2, ensure_ascii=False),
    )


@router.post("/ui/new")
async def submit(form: FormDep, services: ServicesDep, request: Request) -> Response:
    """The page of the new job, or of the sweep; the form again, with its errors, if it is refused.

    Sent twice, it submits once.
    """
    errors = FormErrors()
    found = read_request(to_body(form), errors)
    if found is not None:
        with errors.collected():
            submitted = await services.submitter.submit(found, key=key_of(form), scope=request.scope)
            job = submitted[0].job
            there = f"sweep?label={SWEEP}={job.labels[SWEEP]}" if found.is_sweep else f"jobs/{job.id}"
            return see(f"/ui/{there}", request.scope)
    return await run_in_threadpool(_form, request, form, errors)


def _rounded(request: JobRequest, found: EstimateBody) -> str | None:
    """A sentence where the fraction is not of whole blocks."""
    ratio, blocks = request.greatest_ratio, found.blocks
    exact, removed = (ratio or 0.0) * blocks.before, blocks.before - blocks.after
    if ratio is None or abs(exact - removed) < _SAME:
        return None
    most = "at most " if found.trials else ""
    share = removed / blocks.before
    return f"{ratio:g} of {blocks.before} blocks is {exact:.3g}: {most}{removed} go, {share:.3f} of them."


def _form(request: Request, values: Mapping[str, str], errors: FormErrors, *, models: Sequence[str] = ()) -> Response:
    return page(
        "new_job.html",
        request.scope,
        status=errors.status if errors else HTTPStatus.OK,
        values={name: values.get(name, "") for name in (*FIELDS, "base")},
        errors=errors,
        key=str(uuid4()),
        models=models,
        texts=BUILTIN_TEXTS,
        methods=list(Method),
        devices=dict.fromkeys(one for one in ("cpu", "cuda", values.get("device", "")) if one),
    )
