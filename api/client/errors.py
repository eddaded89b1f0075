"""The errors that the client raises.

ServiceError
|-- ServiceUnreachable     no response, or not in time
|   `-- InvalidAddress     there can be none: that is no address
|-- NotTheService          a response that is not one of this service
`-- Refused                a problem (RFC 9457): status, code, detail, errors
    |-- NotAllowed         401, 403
    |-- Missing            404
    |-- Conflicting        409
    |-- TooMany            429: too many requests, or too many jobs that are queued or running
    |-- Invalid            422; `errors` lists field, value and what is expected
    `-- ServiceBroken      5xx
"""

from collections.abc import Mapping

from api.client.models import Problem


class ServiceError(Exception):
    """Base of what the clients raise; `str(error)` is one sentence for a person."""


class ServiceUnreachable(ServiceError):
    pass


class InvalidAddress(ServiceUnreachable):
    pass


class NotTheService(ServiceError):
    pass


class Refused(ServiceError):
    """`retry_after`: the seconds after which the service wants to be asked again, if it says so."""

    def __init__(self, problem: Problem, *, retry_after: float | None = None) -> None:
        super().__init__(problem.detail or problem.title or f"HTTP {problem.status}")
        self.problem = problem
        self.retry_after = retry_after


class NotAllowed(Refused):
    pass


class Missing(Refused):
    pass


class Conflicting(Refused):
    pass


class TooMany(Refused):
    pass


class Invalid(Refused):
    pass


class ServiceBroken(Refused):
    pass


_BY_STATUS: Mapping[int, type[Refused]] = {
    401: NotAllowed,
    403: NotAllowed,
    404: Missing,
    409: Conflicting,
    422: Invalid,
    429: TooMany,
}


def error_of(problem: Problem, *, retry_after: float | None = None) -> Refused:
    """The error for a problem, by its status."""
    kind = ServiceBroken if problem.status >= 500 else _BY_STATUS.get(problem.status, Refused)
    return kind(problem, retry_after=retry_after)
