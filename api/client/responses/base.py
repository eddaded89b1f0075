"""The base of all responses of the service."""

from pydantic import BaseModel, ConfigDict


class Response(BaseModel):
    """Frozen; fields that this version does not know are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")
