"""Responses: entity tags, so that a client that has seen a version gets 304 and no body, and links to the next page."""

import hashlib
from collections.abc import Container, Mapping
from http import HTTPStatus
from importlib import metadata
from typing import Any
from urllib.parse import urlencode

from fastapi import Request, Response

from api.http.hosts import path_of, root_of
from replaceme_core.shapes import Page

UNCHANGED: dict[int | str, dict[str, Any]] = {
    HTTPStatus.NOT_MODIFIED.value: {"description": "What `If-None-Match` names is the present version"}
}
"""`responses` of a route that answers with `tagged`."""
CHECKED = "private, no-cache"
"""`Cache-Control`: for its owner only, and to be checked before each use."""
NO_STORE = "no-store"
"""The same of a response with a secret: nobody keeps it."""
_TAG_BYTES = 12
_WEAK = "W/"
_RELEASE = metadata.version("replaceme")


def tag_of(*parts: object) -> str:
    """The entity tag of what is made of `parts`. Another release makes other bytes of them.

    It is weak, since a strong tag names bytes, and those of a body with gzip are others.
    """
    digest = hashlib.blake2b(repr((_RELEASE, parts)).encode(errors="replace"), digest_size=_TAG_BYTES)
    return f'{_WEAK}"{digest.hexdigest()}"'


def known_tags(request: Request) -> frozenset[str]:
    """The tags in `If-None-Match`, all as weak ones; `*` as it is."""
    tags = (tag.strip() for found in request.headers.getlist("if-none-match") for tag in found.split(","))
    return frozenset(tag if tag == "*" else f"{_WEAK}{tag.removeprefix(_WEAK)}" for tag in tags)


def is_known(tag: str, known: Container[str]) -> bool:
    """Whether `known`, a result of `known_tags`, has this tag."""
    return tag in known or "*" in known


def not_modified(tag: str, *, headers: Mapping[str, str] | None = None) -> Response:
    """304 for a client that knows this tag."""
    return Response(
        status_code=HTTPStatus.NOT_MODIFIED,
        headers={"ETag": tag, "Cache-Control": CHECKED, "Vary": "Accept-Encoding", **(headers or {})},
    )


def tagged(
    body: str | bytes,
    *,
    request: Request,
    tag: str | None = None,
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> Response:
    """200 with a tag, by default that of the bytes, or 304 for a client that knows it."""
    tag = tag or tag_of(body)
    if is_known(tag, known_tags(request)):
        return not_modified(tag, headers=headers)
    return Response(body, headers={"ETag": tag, "Cache-Control": CHECKED, **(headers or {})}, media_type=media_type)


def link_to_next(cursor: str | None, *, request: Request, name: str = "cursor") -> Mapping[str, str]:
    """The header `Link` (RFC 8288): the same request for the next page, if there is one."""
    if cursor is None:
        return {}
    query = [(key, value) for key, value in request.query_params.multi_items() if key != name]
    there = f"{root_of(request.scope)}{path_of(request.scope)}?{urlencode([*query, (name, cursor)])}"
    return {"Link": f'<{there}>; rel="next"'}


def listed(page: Page[Any], *, request: Request, name: str = "cursor") -> Response:
    """A page of a list. `name` is the parameter that its `next_cursor` is for."""
    headers = link_to_next(page.next_cursor, request=request, name=name)
    return tagged(page.model_dump_json(), request=request, headers=headers)
