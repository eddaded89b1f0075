"""Entity tags: a client that has seen a version gets 304 and no body."""

import hashlib
from collections.abc import Container, Mapping
from functools import cache
from http import HTTPStatus
from importlib import metadata
from typing import Any

from fastapi import Request, Response

UNCHANGED: Mapping[int | str, dict[str, Any]] = {
    HTTPStatus.NOT_MODIFIED.value: {"description": "What `If-None-Match` names is the present version"}
}
"""`responses` of a route that answers with `json_response`."""
CHECKED = "private, no-cache"
"""`Cache-Control`: for its owner only, and to be checked before each use."""
NO_STORE = "no-store"
"""The same of a response with a secret: nobody keeps it."""
_GZIP = "-gzip"
_TAG_BYTES = 12


@cache
def _release() -> str:
    return metadata.version("replaceme")


def tag_of(*parts: object) -> str:
    """The strong entity tag, with its quotes, of what is made of `parts`. Another release makes other bytes of them."""
    digest = hashlib.blake2b(repr((_release(), parts)).encode(errors="replace"), digest_size=_TAG_BYTES)
    return f'"{digest.hexdigest()}"'


def known_tags(request: Request) -> frozenset[str]:
    """The tags in `If-None-Match`; `*` as it is. Weak and strong ones match alike, and so do compressed bodies."""
    found = ",".join(request.headers.getlist("if-none-match"))
    tags = (tag.strip().removeprefix("W/") for tag in found.split(",")) if found else ()
    return frozenset(tag.removesuffix(f'{_GZIP}"') + '"' if tag.endswith(f'{_GZIP}"') else tag for tag in tags)


def is_known(tag: str, known: Container[str]) -> bool:
    """Whether `known`, a result of `known_tags`, has this tag."""
    return tag in known or "*" in known


def not_modified(tag: str, *, request: Request, headers: Mapping[str, str] | None = None) -> Response:
    """304, with the tag as the client knows it."""
    sent = ",".join(request.headers.getlist("if-none-match"))
    compressed = f'{tag[:-1]}{_GZIP}"'
    shown = compressed if compressed in sent else tag
    return Response(
        status_code=HTTPStatus.NOT_MODIFIED,
        headers={"ETag": shown, "Cache-Control": CHECKED, "Vary": "Accept-Encoding", **(headers or {})},
    )


def json_response(
    body: str | bytes, *, request: Request, tag: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """200 with a tag, by default that of the bytes, or 304 for a client that knows it."""
    tag = tag or tag_of(body)
    if is_known(tag, known_tags(request)):
        return not_modified(tag, request=request, headers=headers)
    return Response(
        body, headers={"ETag": tag, "Cache-Control": CHECKED, **(headers or {})}, media_type="application/json"
    )
