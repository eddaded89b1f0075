"""A minimal HTTP/1.1 client over one kept-alive connection. Its own cost is too small to affect measurements."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

_IDEMPOTENT = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A response; names and values of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """One request at a time. A connection that the server closed while it was idle is opened again."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.reopened = 0

    async def ask(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request and return the response. Raises `ConnectionError` or `EOFError` if there is none."""
        sent = {"Host": self._host, **(headers or {})}
        if body:
            sent |= {"Content-Length": str(len(body)), "Content-Type": "application/json"}
        head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        request = f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body
        if self._reader is not None and self._reader.at_eof():  # closed while idle
            self._reopen()
        is_used = self._reader is not None
        try:
            return await self._exchange(request)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            # closed at the moment of use; only idempotent requests are sent again
            begun = isinstance(error, asyncio.IncompleteReadError) and error.partial
            if not is_used or begun or method not in _IDEMPOTENT:
                self.close()
                raise
            self._reopen()
            return await self._exchange(request)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    def _reopen(self) -> None:
        self.close()
        self.reopened += 1

    async def _exchange(self, request: bytes) -> Answer:
        if self._reader is None or self._writer is None:
            host, _, port = self._host.partition(":")
            self._reader, self._writer = await asyncio.open_connection(host, int(port))
        self._writer.write(request)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection") == "close":
            self.close()
        return Answer(status=int(lines[0].split()[1]), headers=headers, body=body)
