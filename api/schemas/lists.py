"""Lists of jobs, and requests for all jobs that have something in common."""

import re
from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from api.schemas.body import Body, Query
from api.schemas.jobs import JobBody
from replaceme_core.ledger.reading import CURSOR_PATTERN, JobFilters, Sort
from replaceme_core.ledger.states import JobStatus
from replaceme_core.request.fields import Labels, LabelText, one_of

MOST_JOBS = 500
MOST_IDS = 200
_LABEL_TEXT: TypeAdapter[str] = TypeAdapter(LabelText)

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def _written_out(value: object) -> object:
    """Pydantic would take a number for seconds since 1970."""
    if not isinstance(value, str) or not _RFC_3339.fullmatch(value):
        raise ValueError("expected a time with its zone, such as 2026-11-27T03:33:56Z")
    return value


Time = Annotated[AwareDatetime, BeforeValidator(_written_out), Field(strict=False)]
JobId = Annotated[str, Field(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
Model = Annotated[str, Field(min_length=1, max_length=200, pattern="^[!-~]+$")]


class JobsQuery(Query):
    """Filters, order, page and fields. All filters must match; of a repeated one, except `label`, any value."""

    limit: Annotated[int, Field(ge=1, le=MOST_JOBS)] = 50
    cursor: Annotated[str, Field(pattern=CURSOR_PATTERN)] | None = Field(
        default=None, description="opaque: the `next_cursor` of the page before"
    )
    sort: Sort = Field(
        default=Sort.NEWEST, description="`-` is descending; by `finished_at`, only finished jobs are listed"
    )
    status: list[JobStatus] = Field(default=[], max_length=len(JobStatus), description="repeat it for several")
    label: list[str] = Field(default=[], max_length=32, description="KEY=VALUE; a job must have all that are given")
    model: Model | None = Field(default=None, description="the repository of the original model, `org/name`")
    created_after: Time | None = None
    created_before: Time | None = None
    id: list[JobId] = Field(default=[], max_length=MOST_IDS, description="repeat it for several")
    fields: list[str] = Field(
        default=[], max_length=64, description="names of fields, with commas or repeated; the answer has only these"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.filters()
        self.shown()
        return self

    def filters(self) -> JobFilters:
        return JobFilters(
            statuses=self.status,
            labels=_labels(self.label),
            model=self.model,
            created_after=self.created_after,
            created_before=self.created_before,
            ids=self.id,
        )

    def shown(self) -> frozenset[str] | None:
        """The fields that are wanted; `None`: all."""
        names = [name.strip() for part in self.fields for name in part.split(",") if name.strip()]
        for name in names:
            if name not in JobBody.model_fields:
                known = ", ".join(JobBody.model_fields)
                raise _wrong("fields", f"there is no field {name[:40]!r}; the fields are {known}")
        return frozenset(names) or None


class CancelRequest(BaseModel):
    """Which jobs to cancel: those that match all that is given, of each list any value. Something must be given."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    status: Annotated[list[Annotated[JobStatus, one_of(JobStatus)]], Field(max_length=2)] = []
    labels: Labels = {}
    model: Model | None = None
    created_after: Time | None = None
    created_before: Time | None = None
    ids: Annotated[list[JobId], Field(max_length=MOST_IDS)] = []
    all: bool = Field(default=False, description="true: all of your queued and running jobs")

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = self.model_dump(exclude={"all"}, exclude_defaults=True)
        if bool(given) is self.all:
            raise _wrong("all", "expected at least one filter, or all: true and no filter")
        return self

    def filters(self) -> JobFilters:
        return JobFilters(
            statuses=self.status,
            labels=self.labels,
            model=self.model,
            created_after=self.created_after,
            created_before=self.created_before,
            ids=self.ids,
        )


class CancelledBody(Body):
    """A job of a bulk cancel: `cancelled`, or `running` until its worker has stopped it."""

    id: str
    status: JobStatus


class CancelledJobsBody(Body):
    """What a bulk cancel has done. `more`: others match; send the request again."""

    items: list[CancelledBody]
    more: bool


def _labels(texts: Iterable[str]) -> dict[str, str]:
    """The labels to filter by, name to value."""
    found: dict[str, str] = {}
    for text in texts:
        name, *rest = re.split("[=:]", text, maxsplit=1)
        try:
            value = _LABEL_TEXT.validate_python("".join(rest))
            name = _LABEL_TEXT.validate_python(name)
        except ValidationError:
            raise _wrong("label", "expected KEY=VALUE, each of 1 to 63 letters, digits, '.', '_', '/', '-'") from None
        if found.setdefault(name, value) != value:
            raise _wrong("label", "two values for one label match no job, since a job has one value for each label")
    return found


def _wrong(field: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("query", "{message}", {"field": field, "message": message})
