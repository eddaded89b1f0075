"""A plan as a client reads it: what a job would take."""

from api.client.responses.base import Response


class Notice(Response):
    """`code` is for programs, `message` one sentence for a person."""

    code: str
    message: str
    field: str | None = None


class PlannedModel(Response):
    repo_id: str
    revision: str | None = None
    family: str | None = None
    supported: bool
    methods: tuple[str, ...] = ()


class StagePlan(Response):
    """Seconds and bytes; the bytes are `None` for stages that run no model."""

    stage: str
    seconds: float
    host_bytes: int | None = None
    gpu_bytes: int | None = None


class Trials(Response):
    """Of a search for the deepest cut: how many at most, and the seconds of all of them."""

    at_most: int
    seconds: float


class Estimate(Response):
    """What a job is expected to take. The HTTP reference explains the fields of `blocks`, `bytes` and the others."""

    method: str
    loading: str
    dtype: str
    samples: int
    max_length: int
    blocks: dict[str, int | str]
    parameters: dict[str, int]
    bytes: dict[str, int]
    memory: dict[str, int]
    time: dict[str, float | str]
    stages: tuple[StagePlan, ...]
    trials: Trials | None = None


class WorkerPlan(Response):
    """`route` is the kind of worker that would run the job, `None` any; `alive`: whether there is one now."""

    route: str | None = None
    estimated_for: str
    alive: bool


class Plan(Response):
    """What a job would take. A submission is refused if there are `refusals`."""

    model: PlannedModel
    estimate: Estimate | None = None
    worker: WorkerPlan | None = None
    warnings: tuple[Notice, ...] = ()
    refusals: tuple[Notice, ...] = ()
