"""Plans: what a job would take, before it is submitted."""

from typing import Annotated

from fastapi import APIRouter, Body, Request

from api.auth.caller import caller_of
from api.deps import PlanningDep
from api.http.requests import StrictRoute
from api.schemas.plans import PlanBody
from replaceme_core.request.spec import CompressionRequest

router = APIRouter(tags=["plans"], route_class=StrictRoute)

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
