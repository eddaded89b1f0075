"""The header `Idempotency-Key`: a request that may be sent again."""

from typing import Annotated

from fastapi import Header, Request

from replaceme_core.errors import InvalidInput

_KEY_HEADER = "Idempotency-Key"


async def idempotency_key(
    request: Request,
    key: Annotated[
        str | None,
        Header(
            alias=_KEY_HEADER,
            min_length=1,
            max_length=255,
            pattern="^[!-~]+$",  # visible ASCII
            description="Identifies this request: repeated with the same key and body, it returns the first job.",
        ),
    ] = None,
) -> str | None:
    if len(request.headers.getlist(_KEY_HEADER)) > 1:
        raise InvalidInput("the header is given more than once", field=_KEY_HEADER)
    return key
