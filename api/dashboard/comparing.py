"""Several jobs side by side: some that were chosen, or all that have a label, such as those of a sweep; quality against
size and speed as charts, and the figures as a file.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field, ValidationError
from starlette.concurrency import run_in_threadpool

from api.bodies import JobBody, Parameters
from api.dashboard.jobs import Filters, Text, stored_report
from api.dashboard.rendering import page, removal, short_id
from api.routes.deps import CallerDep, ServicesDep
from api.routes.jobs import JobId, job_body, whole_body
from replaceme_core.errors import InvalidInput, NotFound
from replaceme_core.ledger import reading
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.states import TERMINAL, JobStatus
from replaceme_core.report import view
from replaceme_core.report.figures import digits, percent
from replaceme_core.report.reading import Report, Shown
from replaceme_core.runner.messages import Stage
from replaceme_core.validation import parameter_problem

router = APIRouter()

FEWEST, MOST = 2, 5
_MOST_GIVEN = 200
_MOST_OF_A_LABEL, _MOST_IN_A_FILE = 60, 1000
_MORE_IS_BETTER = [one.label for one in view.QUANTITIES if one.unit.endswith("/s") or one.name == "distinct_4grams"]
_PERPLEXITY = next(one.label for one in view.QUANTITIES if one.name == "perplexity")
_SIZE = "bytes"
"""The name of the quantity."""
_GREATEST_LIMIT = 1e6
"""Of a loss of quality: no chart has room for more."""
_TICKS = 4
"""About as many as an axis has."""


class OfLabel(Parameters):
    """`label`: as in the form of the list. `most`: loss of quality beyond which a result without a gate misses."""

    label: Text
    most: Annotated[str, Field(max_length=20)] = ""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A job and what its report says of its result; without a report there is nothing of it."""

    job: JobBody
    report: Report
    headlines: Mapping[str, view.Headline]
    quantities: Mapping[str, list[view.Cell]]

    @property
    def of_images(self) -> bool:
        return bool(self.report.places("images"))

    @property
    def loss(self) -> float | None:
        """The greatest ratio of perplexities, or the distance of embeddings."""
        places = [(*base, name) for what, name in view.LOSSES for base in self.report.places(what)]
        return max((value for place in places if (value := self.report.number(*place)) is not None), default=None)

    def part(self, *names: str) -> float | None:
        """The first of these quantities that was measured of both models, as a part of the original's."""
        for one in (one for one in view.QUANTITIES if one.name in names):
            before, after = (self.report.number(side, *one.path) for side in view.SIDES)
            if before and after is not None:
                return after / before
        return None

    def passes(self, most: float | None) -> bool:
        """By its own gate, or by the greatest loss; false where neither is there."""
        if self.job.gate is not None or self.job.status is not JobStatus.SUCCEEDED:
            return self.job.gate is not None and self.job.gate.passed
        return most is not None and self.loss is not None and self.loss <= most


def value_of(cell: view.Cell) -> float | None:
    """The number that a cell begins with."""
    return cell[0].value if cell and isinstance(cell[0], Shown) else None


# The chart


@dataclass(frozen=True, kw_only=True)
class Point:
    """A result; `x` and `y` are parts of the axes, from the left and from the top. `label` is short, `text` is not."""

    x: float
    y: float
    job_id: str
    label: str
    text: str
    is_best: bool


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Loss of quality over size or speed. A tick is its place and its text; `limit` is that of the greatest loss."""

    up: str
    across: str
    points: Sequence[Point]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    limit: float | None


def charts_of(jobs: Sequence[Compared], *, best: str | None = None, most: float | None = None) -> list[Chart]:
    """Quality over size and over speed, of models of text and of images; what two have no figures for is left out."""
    charts = (("size of the weights", (_SIZE,)), ("speed", view.SPEEDS))
    kinds = [[one for one in jobs if one.of_images is of_images] for of_images in (False, True)]
    found = (_chart(some, of, across=across, best=best, most=most) for some in kinds for across, of in charts)
    return [chart for chart in found if chart is not None]


def _chart(
    jobs: Sequence[Compared], of: Sequence[str], *, across: str, best: str | None, most: float | None
) -> Chart | None:
    known = [(one, one.part(*of), one.loss) for one in jobs]
    found = [(one, part, loss) for one, part, loss in known if part is not None and loss is not None]
    if len(found) < FEWEST:
        return None
    x_ticks = _ticks([part for _, part, _ in found])
    y_ticks = _ticks([loss for _, _, loss in found] + ([] if most is None else [most]))
    form = digits(max(1, _decimals(y_ticks)))
    part_of = digits(max(0, _decimals(x_ticks) - 2))

    def place(value: float, ticks: Sequence[float]) -> float:
        return (value - ticks[0]) / (ticks[-1] - ticks[0])

    points = [
        Point(
            x=place(part, x_ticks),
            y=1 - place(loss, y_ticks),
            job_id=one.job.id,
            label=f"{one.job.spec.greatest_ratio:g}" if one.job.spec.greatest_ratio else short_id(one.job.id),
            text=f"{removal(one.job.spec)} ({short_id(one.job.id)}): {percent(part)}, {form(loss)}",
            is_best=one.job.id == best,
        )
        for one, part, loss in found
    ]
    return Chart(
        up=view.DISTANCE if jobs[0].of_images else "Worst perplexity",
        across=across,
        points=points,
        x_ticks=[(place(one, x_ticks), f"{part_of(100 * one)} %") for one in x_ticks],
        y_ticks=[(1 - place(one, y_ticks), form(one)) for one in y_ticks],
        limit=None if most is None else 1 - place(most, y_ticks),
    )


def _decimals(ticks: Sequence[float]) -> int:
    """That tell them apart."""
    return -math.floor(math.log10(round(ticks[1] - ticks[0], 12)))


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers around all values.

    >>> _ticks([0.58, 0.87]), _ticks([3.0]), _ticks([0.0, 1e-13])
    ([0.5, 0.6, 0.7, 0.8, 0.9], [2.0, 3.0, 4.0], [0.0, 5e-06])
    """
    low, high = min(values), max(values)
    differ = high - low > max(1e-9 * abs(high), 1e-11)  # by more than rounding, here and below
    rough = (high - low if differ else max(abs(high), 1e-5)) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(one * power for one in (1, 2, 5, 10) if one * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step)
    if first == last:
        first, last = first - 1, last + 1
    return [round(number * step, 12) for number in range(first, last + 1)]


# Pages


@router.get("/ui/compare")
async def compare(
    services: ServicesDep,
    caller: CallerDep,
    request: Request,
    id: Annotated[list[JobId], Query(max_length=_MOST_GIVEN)] = [],  # noqa: B006  # the framework copies it
) -> Response:
    """The page. Another number of jobs is refused with what would be right."""
    ids = list(dict.fromkeys(id))
    if not FEWEST <= len(ids) <= MOST:
        status = HTTPStatus.UNPROCESSABLE_ENTITY
        return page("compare.html", request.scope, status=status, jobs=[], given=len(ids), fewest=FEWEST, most=MOST)
    reads = [await services.reader.read(job_id, owner=caller) for job_id in ids]
    jobs = [whole_body(one, request) for one in (read.seen for read in reads) if one is not None]
    found = await run_in_threadpool(_compared, services.database, jobs, caller)
    labels = list(dict.fromkeys(label for one in found for label in one.quantities))
    return await run_in_threadpool(
        page,
        "compare.html",
        request.scope,
        jobs=jobs,
        labels=labels,
        measured=[one.quantities for one in found],
        charts=charts_of(found),
        best={label: _best(label, found) for label in labels},
        stages=[name for name in Stage if any(stage.name is name for job in jobs for stage in job.stages)],
    )


@router.get("/ui/sweep")
def show_sweep(
    query: Annotated[OfLabel, Query()], services: ServicesDep, caller: CallerDep, request: Request
) -> Response:
    """All jobs with a label, live; the smallest result that passes is marked."""
    found, more = _of_label(query.label, services.database, caller, request)
    most, problem = None, ""
    try:
        most = float(query.most) if query.most.strip() else None
        if most is not None and not 0 < most <= _GREATEST_LIMIT:
            raise ValueError
    except ValueError:
        most, problem = None, f"expected a number such as 1.6, at most {_GREATEST_LIMIT:,.0f}, got {query.most!r}"
    passing = [one for one in found if one.passes(most) and one.part(_SIZE) is not None]
    best = min(passing, key=lambda one: one.part(_SIZE) or 0.0, default=None)
    chosen = None if best is None else best.job.id
    return page(
        "sweep.html",
        request.scope,
        status=HTTPStatus.UNPROCESSABLE_ENTITY if problem else HTTPStatus.OK,
        label=query.label,
        is_live=not problem and any(one.job.status not in TERMINAL for one in found),
        given=query.most,
        problem=problem,
        jobs=found,
        more=more,
        columns=list(dict.fromkeys(label for one in found for label in one.headlines)),
        best=chosen,
        most=most,
        charts=charts_of(found, best=chosen, most=most),
    )


@router.get("/ui/sweep.csv")
def download_sweep(
    query: Annotated[OfLabel, Query()], services: ServicesDep, caller: CallerDep, request: Request
) -> Response:
    """A row per job; of each quantity the value of the original and of the result."""
    found, more = _of_label(query.label, services.database, caller, request, most=_MOST_IN_A_FILE)
    if more:
        raise InvalidInput(f"more than {_MOST_IN_A_FILE} jobs have this label: GET /jobs lists them", field="label")
    labels = list(dict.fromkeys(label for one in found for label in one.quantities))
    written = io.StringIO()
    rows = csv.writer(written)
    sides = [f"{label}, {side}" for label in labels for side in ("original", "result")]
    rows.writerow(["id", "status", "model", "ratio", "removed_blocks", "gate_passed", *sides])
    for one in found:
        job, nothing = one.job, ((), ())
        cells = [cell for label in labels for cell in one.quantities.get(label, nothing)[:2]]
        removed = "" if job.result is None else " ".join(map(str, job.result.removed_blocks))
        passed = "" if job.gate is None else str(job.gate.passed).lower()
        facts = [job.id, job.status, job.spec.model.repo_id, job.spec.greatest_ratio, removed, passed]
        rows.writerow([*facts, *(value_of(cell) for cell in cells)])
    headers = {"Content-Disposition": 'attachment; filename="jobs.csv"'}
    return Response(written.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def _of_label(
    label: str, database: Database, owner: str, request: Request, *, most: int = _MOST_OF_A_LABEL
) -> tuple[list[Compared], bool]:
    """The jobs with this label, the least cut first, and whether there are more. Raises `NotFound`, `InvalidInput`."""
    try:
        filters = Filters(label=label).query().filters()
    except ValidationError as error:
        raise InvalidInput(parameter_problem(error.errors()[0], default="label")["message"], field="label") from None
    if not filters.labels:
        raise NotFound("no label is given")
    with database.session(read_only=True) as session:
        found = reading.page(session, owner=owner, filters=filters, sort=reading.Sort.NEWEST, limit=most, cursor=None)
        jobs = [job_body(snapshot.job(), request) for snapshot in found.items]
    if not jobs:
        raise NotFound(f"no job has the label {label!r}")
    jobs.sort(key=lambda job: (job.spec.greatest_ratio or 0.0, job.created_at))
    return _compared(database, jobs, owner), found.next_cursor is not None


def _compared(database: Database, jobs: Sequence[JobBody], owner: str) -> list[Compared]:
    compared = []
    for job in jobs:
        with database.session(read_only=True) as session:
            report = Report(stored_report(session, job.id, owner) or {})
        headlines = {one.label: one for one in view.headlines(report)}
        compared.append(Compared(job=job, report=report, headlines=headlines, quantities=_quantities(report)))
    return compared


def _best(label: str, found: Sequence[Compared]) -> list[int]:
    """The numbers of the jobs whose result is best in this quantity; none where all are alike or it is not significant.

    A perplexity says nothing beside one on other tokens, so none is best where the originals have not the same one.
    """
    cells = {number: one.quantities[label] for number, one in enumerate(found) if label in one.quantities}
    known = {number: value for number, cell in cells.items() if (value := value_of(cell[1])) is not None}
    if len(set(known.values())) < 2:
        return []
    if label.startswith(_PERPLEXITY):
        originals = [value_of(cells[number][0]) or 0.0 for number in known]
        if not all(math.isclose(one, originals[0], rel_tol=1e-2) for one in originals):
            return []
    best = (max if label in _MORE_IS_BETTER else min)(known.values())
    return [number for number, value in known.items() if value == best and cells[number][2] != view.NOT_SIGNIFICANT]


def _quantities(report: Report) -> dict[str, list[view.Cell]]:
    """By their labels: before, after and the change."""
    models, texts, images = view.both_models(report), view.texts(report), view.images(report)
    found = {view.plain(name): cells for name, *cells in (models.rows if models else ())}
    for name, before, after, ratio in texts.only("name", "before", "after", "ratio").rows if texts else ():
        found[f"Perplexity on {view.plain(name)}"] = [before, after, (*ratio, " times")]
    for name, distance in images.only("name", "distance").rows if images else ():
        found[f"Distance of embeddings on {view.plain(name)}"] = [("",), distance, ("",)]
    return found
