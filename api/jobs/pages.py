"""Links from one page of a list to the next (RFC 8288)."""

from urllib.parse import urlencode

from fastapi import Request


def next_page(request: Request, *, cursor: str, name: str = "cursor") -> str:
    """A value of the header `Link`: the same request for the next page."""
    root = str(request.scope.get("root_path", "")).rstrip("/")
    path = str(request.scope["path"]).removeprefix(root)
    query = [(key, value) for key, value in request.query_params.multi_items() if key != name]
    return f'<{root}{path}?{urlencode([*query, (name, cursor)])}>; rel="next"'
