"""The request for the deepest cut that passes the gate: `ratio: {max: 0.5}`."""

import json
from typing import Annotated

from pydantic import BeforeValidator, ValidationError
from pydantic_core import PydanticCustomError

from replaceme_core.json_values import json_safe, shorten
from replaceme_core.request.fields import Frozen, Ratio


class DeepestCut(Frozen):
    """Remove as many blocks as still pass the gate, at most the fraction `max` of them."""

    max: Ratio


def _number_or_deepest(value: object) -> object:
    """One error at one path, where a union would have one for each of its members."""
    if isinstance(value, dict):
        try:
            return DeepestCut.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise PydanticCustomError(first["type"], "{problem}", {"field": field, "problem": first["msg"]}) from None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(value, DeepestCut) and not (is_number and 0 < value < 1):  # type: ignore[operator]
        got = shorten(json.dumps(json_safe(value), ensure_ascii=False), 60)
        raise PydanticCustomError("ratio", "expected a number greater than 0 and less than 1, got {got}", {"got": got})
    return value


RatioOrDeepest = Annotated[Ratio | DeepestCut, BeforeValidator(_number_or_deepest)]
