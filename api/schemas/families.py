"""Families of models."""

from typing import Self

from api.schemas.body import Body
from replaceme_core.families.layout import Layout, MapStructure, Refusal
from replaceme_core.families.table import limits
from replaceme_core.request.method import Method
from replaceme_core.request.removal import methods_of, structures_of


class FamilyBody(Body):
    """A model type. `reason` explains why it is refused or, if it is supported, which of its models are not."""

    model_type: str
    supported: bool
    methods: tuple[Method, ...]
    structures: tuple[MapStructure, ...] = ()
    reason: str | None

    @classmethod
    def of(cls, row: Layout | Refusal) -> Self:
        if isinstance(row, Refusal):
            return cls(model_type=row.model_type, supported=False, methods=(), reason=row.reason)
        return cls(
            model_type=row.model_type,
            supported=True,
            methods=methods_of(row),
            structures=structures_of(row),
            reason=limits(row),
        )
