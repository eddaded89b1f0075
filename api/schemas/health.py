"""Health of the service."""

from typing import Literal

from pydantic import Field

from api.schemas.body import Body
from replaceme_core.runner.sandbox import SandboxMode


class HealthBody(Body):
    status: Literal["ok"] = "ok"


class ReadyBody(Body):
    status: Literal["ok"] = "ok"
    database: Literal["ok"] = "ok"
    broker: Literal["ok"] = "ok"
    sandboxes: list[SandboxMode] = Field(
        default_factory=list,
        description="the sandbox in force of each live worker that shares the API's data directory",
    )
