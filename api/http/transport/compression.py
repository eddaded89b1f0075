"""gzip for clients that accept it. Streams of events pass as they are: each part has to arrive at once."""

import zlib

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SMALLEST_BYTES = 1000
_LEVEL = 6
_IN_THREAD_BYTES = 16 * 1024  # a smaller body takes less time to compress than to hand over to a thread
_GZIP_WINDOW = 31


def accepts_gzip(accepted: str) -> bool:
    """Whether a value of `Accept-Encoding` allows gzip.

    >>> [accepts_gzip(text) for text in ("br, gzip", "gzip;q=0", "*", "", "identity")]
    [True, False, True, False, False]
    """
    weights: dict[str, float] = {}
    for part in accepted.lower().split(","):
        coding, _, parameter = part.partition(";")
        name, _, value = parameter.strip().partition("=")
        try:
            weights[coding.strip()] = float(value) if name.strip() == "q" else 1.0
        except ValueError:
            weights[coding.strip()] = 0.0
    return weights.get("gzip", weights.get("*", 0.0)) > 0


class Compression:
    """ASGI middleware: compresses whole bodies from `SMALLEST_BYTES` on.

    A strong entity tag names bytes, so that of a compressed body is another one: it ends in `-gzip`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        wanted = accepts_gzip(Headers(scope=scope).get("accept-encoding", ""))
        start: Message | None = None

        async def compress(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            if start is None:
                await send(message)
                return
            headers = MutableHeaders(scope=start)
            body = message.get("body", b"")
            whole = not message.get("more_body", False) and len(body) >= SMALLEST_BYTES
            if whole and "content-encoding" not in headers:
                headers.add_vary_header("Accept-Encoding")
                if wanted:
                    body = await run_in_threadpool(_gzip, body) if len(body) >= _IN_THREAD_BYTES else _gzip(body)
                    headers["content-encoding"] = "gzip"
                    headers["content-length"] = str(len(body))
                    if headers.get("etag", "").endswith('"'):
                        headers["etag"] = f'{headers["etag"][:-1]}-gzip"'
                    message = {**message, "body": body}
            await send(start)
            start = None
            await send(message)

        await self._app(scope, receive, compress)


def _gzip(body: bytes) -> bytes:
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
    return compressor.compress(body) + compressor.flush()
