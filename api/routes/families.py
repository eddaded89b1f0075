"""Families of models."""

from fastapi import APIRouter

from api.schemas.body import ListBody
from api.schemas.families import FamilyBody
from replaceme_core.families.table import listing

router = APIRouter(tags=["families"])


@router.get("/families")
def list_families() -> ListBody[FamilyBody]:
    """The families that can be compressed, and those that are refused with the reason."""
    return ListBody(items=[FamilyBody.of(row) for row in listing()])
