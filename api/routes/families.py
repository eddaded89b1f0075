"""Which models can be compressed, and why others cannot."""

from fastapi import APIRouter

from api.schemas.jobs import FamilyBody, ListBody
from replaceme_core.families.table import listing

router = APIRouter(tags=["families"])


@router.get("/families")
def list_families() -> ListBody[FamilyBody]:
    return ListBody(items=[FamilyBody.of(row) for row in listing()])
