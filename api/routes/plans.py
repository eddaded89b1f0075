"""Plans: what a job would take, before it is submitted.

The body of `POST /plans` is `CompressionRequest` of the core.
"""

from typing import Annotated, Self

from fastapi import APIRouter, Body, Request

from api.bodies import ResponseBody
from api.http.callers import caller_of
from api.http.requests import StrictRoute
from api.routes.deps import PlanningDep
from replaceme_core.families.layout import MapStructure
from replaceme_core.hardware import WorkerKind
from replaceme_core.plan.duration import Basis
from replaceme_core.plan.plan import Estimate, Plan, WorkerPlan
from replaceme_core.request.method import Method
from replaceme_core.request.spec import CompressionRequest, Dtype, Loading
from replaceme_core.runner.messages import Stage

router = APIRouter(tags=["plans"], route_class=StrictRoute)


# Bodies


class PlannedModelBody(ResponseBody):
    """`methods` and `structures` are those that the family supports. `revision` is null if there is no such model."""

    repo_id: str
    revision: str | None
    family: str | None
    supported: bool
    methods: tuple[Method, ...]
    structures: tuple[MapStructure, ...]


class CountBody(ResponseBody):
    before: int
    after: int


class BlocksBody(CountBody):
    """`removed` is for people: "8 of 30"."""

    removed: str


class BytesBody(ResponseBody):
    """`download`: from the Hub. `write`: the result. `disk`: the most that lies on the worker's disk at once."""

    download: int
    write: int
    disk: int


class StagePlanBody(ResponseBody):
    """Peak memory in bytes, null for stages without a model, and the expected seconds. `gpu_bytes` is 0 on a CPU."""

    stage: Stage
    seconds: float
    host_bytes: int | None
    gpu_bytes: int | None


class DurationBody(ResponseBody):
    """The job is expected to take from `low_seconds` to `high_seconds`.

    `basis`: `measured`, by `jobs` earlier jobs on this kind of worker, or `model`, by a stated one.
    """

    seconds: float
    low_seconds: float
    high_seconds: float
    basis: Basis
    jobs: int


class MemoryBody(ResponseBody):
    """The highest peaks of all stages, in bytes."""

    host_bytes: int
    gpu_bytes: int


class WorkerPlanBody(ResponseBody):
    """The kind of worker that would run the job; null means any. `alive`: whether there is one now."""

    route: WorkerKind | None  # the name of the kind in this API
    estimated_for: WorkerKind
    alive: bool

    @classmethod
    def of(cls, worker: WorkerPlan) -> Self:
        return cls(route=worker.kind, estimated_for=worker.estimated_for, alive=worker.alive)


class NoticeBody(ResponseBody):
    code: str
    message: str
    field: str | None


class TrialsBody(ResponseBody):
    """Of a search for the deepest cut: how many trials there are at most, and the expected seconds of all of them."""

    at_most: int
    seconds: float


class EstimateBody(ResponseBody):
    """What the worker is expected to decide, and what that takes. `trials` is null unless the deepest cut is asked for.

    Then `blocks`, `parameters` and `bytes` are those of the deepest one.
    """

    method: Method
    loading: Loading
    dtype: Dtype
    samples: int
    max_length: int
    blocks: BlocksBody
    parameters: CountBody
    bytes: BytesBody
    memory: MemoryBody
    time: DurationBody
    stages: tuple[StagePlanBody, ...]
    trials: TrialsBody | None

    @classmethod
    def of(cls, found: Estimate) -> Self:
        removed = found.blocks.before - found.blocks.after
        duration = found.duration
        return cls(
            method=found.method,
            loading=found.loading,
            dtype=found.dtype,
            samples=found.samples,
            max_length=found.max_length,
            blocks=BlocksBody(
                before=found.blocks.before, after=found.blocks.after, removed=f"{removed} of {found.blocks.before}"
            ),
            parameters=CountBody(before=found.parameters.before, after=found.parameters.after),
            bytes=BytesBody(download=found.download, write=found.write, disk=found.disk),
            memory=MemoryBody(host_bytes=found.host_bytes, gpu_bytes=found.device_bytes),
            time=DurationBody(
                seconds=duration.seconds,
                low_seconds=duration.low,
                high_seconds=duration.high,
                basis=duration.basis,
                jobs=duration.jobs,
            ),
            stages=tuple(
                StagePlanBody(
                    stage=stage,
                    seconds=seconds,
                    host_bytes=found.memory[stage].host if stage in found.memory else None,
                    gpu_bytes=found.memory[stage].device if stage in found.memory else None,
                )
                for stage, seconds in duration.stages.items()
            ),
            trials=TrialsBody(at_most=found.trials, seconds=duration.stages[Stage.SELECT]) if found.trials else None,
        )


class PlanBody(ResponseBody):
    """What a job would take. `estimate` is null where a refusal leaves nothing to compute with.

    A submission of the same request is refused if there are `refusals`.
    """

    model: PlannedModelBody
    estimate: EstimateBody | None
    worker: WorkerPlanBody | None
    warnings: tuple[NoticeBody, ...]
    refusals: tuple[NoticeBody, ...]

    @classmethod
    def of(cls, plan: Plan) -> Self:
        return cls(
            model=PlannedModelBody.model_validate(plan),
            estimate=None if plan.estimate is None else EstimateBody.of(plan.estimate),
            worker=None if plan.worker is None else WorkerPlanBody.of(plan.worker),
            warnings=tuple(NoticeBody.model_validate(one) for one in plan.warnings),
            refusals=tuple(NoticeBody.model_validate(one) for one in plan.refusals),
        )


# Routes

_EXAMPLE = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "ratio": 0.25, "calibration": "builtin:general"}
_DEEPEST = {**_EXAMPLE, "ratio": {"max": 0.5}, "gate": {"perplexity_ratio": {"max": 1.6}}}


@router.post("/plans")
async def make_plan(
    body: Annotated[CompressionRequest, Body(examples=[_EXAMPLE, _DEEPEST])], planning: PlanningDep, request: Request
) -> PlanBody:
    """What a job with this body would take. Reads the model's config and headers only, and queues nothing.

    What `POST /jobs` would refuse is listed in `refusals`.
    """
    return PlanBody.of(await planning.plan(body, caller=caller_of(request.scope)))
