"""Health of the service."""

from typing import Literal

from pydantic import Field

from api.schemas.body import Body
from replaceme_core.hardware import WorkerKind
from replaceme_core.runner.sandbox import SandboxMode


class HealthBody(Body):
    status: Literal["ok"] = "ok"


class ReadyBody(Body):
    status: Literal["ok"] = "ok"
    database: Literal["ok"] = "ok"
    broker: Literal["ok"] = "ok"
    workers: dict[WorkerKind, int] = Field(description="live workers that serve each kind of job")
    sandboxes: tuple[SandboxMode, ...] = Field(description="the sandbox in force of each live worker")
