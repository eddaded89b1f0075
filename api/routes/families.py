"""Which models can be compressed."""

from fastapi import APIRouter

from api.schemas import FamilyBody, ListBody
from replaceme_core.families.table import FAMILIES
from replaceme_core.spec import Method

router = APIRouter(tags=["families"])


@router.get("/families")
def list_families() -> ListBody[FamilyBody]:
    return ListBody(items=[FamilyBody(model_type=name, methods=tuple(Method)) for name in sorted(FAMILIES)])
