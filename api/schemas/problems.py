"""Errors, as RFC 9457 describes them."""

from api.schemas.body import Body


class ProblemEntry(Body):
    """One invalid field of a request."""

    field: str
    value: object
    message: str


class ProblemBody(Body):
    """An error (RFC 9457). `errors` is present with status 422."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[ProblemEntry] | None = None
