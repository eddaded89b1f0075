"""Metrics of the service for Prometheus, with a key of their own."""

import hashlib
import hmac
from http import HTTPStatus

from fastapi import APIRouter, HTTPException, Request, Response

from api.auth.guard import CHALLENGE, UNAUTHENTICATED
from api.deps import ServicesDep
from api.http.problems import problem_response
from api.http.responses import NO_STORE

router = APIRouter(tags=["health"])


@router.get("/metrics", include_in_schema=False)  # it is there only where the operator has set a key
async def scrape(services: ServicesDep, request: Request) -> Response:
    """All metrics in Prometheus' text format, or as OpenMetrics."""
    monitoring, key = services.monitoring, services.settings.metrics_key
    if monitoring is None or key is None:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not _is_same(given.strip(), key.get_secret_value()):
        return problem_response(
            status=HTTPStatus.UNAUTHORIZED,
            code=UNAUTHENTICATED,
            detail="expected `Authorization: Bearer KEY` with the key in REPLACEME_METRICS_KEY, which is no API key",
            headers={"WWW-Authenticate": CHALLENGE},
        )
    body, media_type = await monitoring.scrape(accept=request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": media_type, "Cache-Control": NO_STORE})


def _is_same(given: str, key: str) -> bool:
    """Compared as hashes, so that the time says nothing of the key or its length."""
    return hmac.compare_digest(*(hashlib.sha256(text.encode(errors="replace")).digest() for text in (given, key)))
