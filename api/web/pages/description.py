"""The description of the API as pages: Swagger UI and ReDoc, from files of the package."""

import base64
import hashlib
import re
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html

from api.http.request_note import POLICY
from api.web.forms import PageRoute
from api.web.rendering import root_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)

FILES = "/static-offline-docs"
"""Where `fastapi_offline` serves the scripts of both."""
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


@router.get("/docs")
async def show_swagger(request: Request) -> Response:
    files = root_of(request.scope) + FILES
    return _with_policy(
        get_swagger_ui_html(
            **_shared(request),
            swagger_js_url=f"{files}/swagger-ui-bundle.js",
            swagger_css_url=f"{files}/swagger-ui.css",
            swagger_favicon_url=f"{files}/favicon.png",
        )
    )


@router.get("/redoc")
async def show_redoc(request: Request) -> Response:
    files = root_of(request.scope) + FILES
    return _with_policy(
        get_redoc_html(
            **_shared(request),
            redoc_js_url=f"{files}/redoc.standalone.js",
            redoc_favicon_url=f"{files}/favicon.png",
            with_google_fonts=False,
        )
    )


def _shared(request: Request) -> dict[str, Any]:
    return {"openapi_url": f"{root_of(request.scope)}/openapi.json", "title": request.app.title}


def _with_policy(page: Response) -> Response:
    """That of all pages, and what these scripts need: their styles, pictures, and the line that starts them."""
    own = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _SCRIPT.findall(bytes(page.body))]
    scripts = " ".join(["script-src 'self'", *(f"'sha256-{digest}'" for digest in own)])
    page.headers["Content-Security-Policy"] = (
        POLICY.replace("script-src 'self'", scripts)
        .replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
        .replace("img-src 'self'", "img-src 'self' data:")
        + "; worker-src blob:"
    )
    return page
