"""Plans: what a job would take, before it is submitted.

The body of `POST /plans` is `CompressionRequest` of the core.
"""

from typing import Annotated, Self

from fastapi import APIRouter, Body, Request

from api.http.callers import caller_of
from api.http.requests import StrictRoute
from api.routes.deps import ServicesDep
from replaceme_core import shapes
from replaceme_core.families.layout import MapStructure
from replaceme_core.hardware import WorkerKind
from replaceme_core.plan.duration import Basis
from replaceme_core.plan.plan import Estimate, Plan
from replaceme_core.request.method import Method
from replaceme_core.request.spec import CompressionRequest, Dtype, Loading
from replaceme_core.runner.messages import Stage

router = APIRouter(tags=["plans"], route_class=StrictRoute)


# Bodies


class PlannedModelBody(shapes.PlannedModel):
    methods: tuple[Method, ...]
    structures: tuple[MapStructure, ...]


class StagePlanBody(shapes.StagePlan):
    stage: Stage


class DurationBody(shapes.PlannedTime):
    basis: Basis


class WorkerPlanBody(shapes.WorkerPlan):
    route: WorkerKind | None
    estimated_for: WorkerKind


class EstimateBody(shapes.Estimate):
    method: Method
    loading: Loading
    dtype: Dtype
    time: DurationBody
    stages: tuple[StagePlanBody, ...]

    @classmethod
    def from_estimate(cls, found: Estimate) -> Self:
        work, blocks, duration, memory = found.work, found.blocks, found.duration, found.memory
        stages = [
            StagePlanBody(
                stage=stage,
                seconds=seconds,
                host_bytes=memory[stage].host if stage in memory else None,
                gpu_bytes=memory[stage].device if stage in memory else None,
            )
            for stage, seconds in duration.stages.items()
        ]
        return cls.of(
            work.spec.compute,
            method=work.method,
            samples=work.samples,
            max_length=work.length,
            parameters=found.parameters,
            blocks=shapes.BlockCount.of(blocks, removed=f"{blocks.before - blocks.after} of {blocks.before}"),
            bytes=shapes.PlannedBytes.of(found),
            memory=shapes.PlannedMemory.of(found, gpu_bytes=found.device_bytes),
            time=DurationBody.of(duration, low_seconds=duration.low, high_seconds=duration.high),
            stages=stages,
            trials=shapes.Trials(at_most=work.trials, seconds=duration.stages[Stage.SELECT]) if work.trials else None,
        )


class PlanBody(shapes.Plan):
    model: PlannedModelBody
    estimate: EstimateBody | None
    worker: WorkerPlanBody | None

    @classmethod
    def from_plan(cls, plan: Plan) -> Self:
        estimate = None if plan.estimate is None else EstimateBody.from_estimate(plan.estimate)
        return cls.of(plan, estimate=estimate)


# Routes

ONE_TEXT = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "ratio": 0.25, "calibration": "builtin:general"}
DEEPEST = {**ONE_TEXT, "ratio": {"max": 0.5}, "gate": {"perplexity_ratio": {"max": 1.6}}}


@router.post("/plans")
async def make_plan(
    body: Annotated[CompressionRequest, Body(examples=[ONE_TEXT, DEEPEST])], services: ServicesDep, request: Request
) -> PlanBody:
    """What a job with this body would take. Reads the model's config and headers only, and queues nothing.

    What `POST /jobs` would refuse is listed in `refusals`.
    """
    return PlanBody.from_plan(await services.planning.plan(body, caller=caller_of(request.scope)))
