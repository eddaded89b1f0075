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
from typing import ClassVar

from api.client.models import Problem


class ServiceError(Exception):
    """Base of what the clients raise; `str(error)` is one sentence for a person.

    `is_transient`: the same request may be answered later. `retry_after`: after these seconds, if the service says.
    """

    is_transient: ClassVar[bool] = False
    retry_after: float | None = None


class ServiceUnreachable(ServiceError):
    is_transient = True


class InvalidAddress(ServiceUnreachable):
    is_transient = False


class NotTheService(ServiceError):
    pass


class Refused(ServiceError):
    def __init__(self, problem: Problem, *, retry_after: float | None = None) -> None:
        super().__init__(problem)  # what a copy is made from, such as one that leaves a process
        self.problem = problem
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.problem.detail or self.problem.title or f"HTTP {self.problem.status}"


class NotAllowed(Refused):
    pass


class Missing(Refused):
    pass


class Conflicting(Refused):
    pass


class TooMany(Refused):
    is_transient = True


class Invalid(Refused):
    pass


class ServiceBroken(Refused):
    is_transient = True


BY_STATUS: Mapping[int, type[Refused]] = {
    401: NotAllowed,
    403: NotAllowed,
    404: Missing,
    409: Conflicting,
    422: Invalid,
    429: TooMany,
    **dict.fromkeys(range(500, 600), ServiceBroken),
}
