"""Health of the service."""

from typing import Literal

from api.schemas.body import Body


class HealthBody(Body):
    status: Literal["ok"] = "ok"


class ReadyBody(Body):
    status: Literal["ok"] = "ok"
    database: Literal["ok"] = "ok"
    broker: Literal["ok"] = "ok"
