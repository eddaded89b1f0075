"""What a request needs: the scopes of each operation, and the few that anybody may use.

By path and method, so that a new route needs a scope from its first day: nothing is open because somebody forgot it.
"""

from http import HTTPMethod

from replaceme_core.ledger.keys import OF_WEBHOOKS, Scope

PROBES = frozenset({"/health", "/ready", "/metrics"})
"""Never limited, and what `Authorization` they get is not looked at here: `/metrics` has a key of its own."""
_PUBLIC_PAGES = ("/", "/ui", "/ui/", "/ui/sign-in", "/ui/sign-out")
PUBLIC = frozenset({*PROBES, *_PUBLIC_PAGES, "/families", "/docs", "/redoc", "/openapi.json"})
"""They say nothing about any caller, and probes and browsers have no key."""
_PUBLIC_FILES = ("/static-offline-docs/", "/ui/static/")
_READING = (HTTPMethod.GET, HTTPMethod.HEAD, HTTPMethod.OPTIONS)
_OF_ADMINS = frozenset({"keys", "owners"})
"""Everything under these paths needs `admin`. Elsewhere reading needs `jobs:read`, the rest a scope to write."""


def scopes_of(method: str, path: str) -> tuple[Scope, ...]:
    """The scopes that a request needs, all of them; none: it needs no key. `path` is without the service's root.

    >>> [[*map(str, scopes_of("POST", path))] for path in ("/jobs", "/keys", "/webhooks")], scopes_of("GET", "/health")
    ([['jobs:write'], ['admin'], ['webhooks:write', 'jobs:read']], ())
    """
    if path in PUBLIC or path.startswith(_PUBLIC_FILES):
        return ()
    resource = path.split("/", 2)[1] if path.startswith("/") else ""
    if resource in _OF_ADMINS:
        return (Scope.ADMIN,)
    if method in _READING:
        return (Scope.JOBS_READ,)
    return (Scope.WEBHOOKS_WRITE, OF_WEBHOOKS) if resource == "webhooks" else (Scope.JOBS_WRITE,)


def is_cancel(method: str, path: str) -> bool:
    """Whether the request cancels something. That is never limited: it ends work."""
    return method == HTTPMethod.POST and path.endswith("/cancel")
