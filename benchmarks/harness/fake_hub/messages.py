"""Requests to the fake Hub and its replies, without sockets."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.fake_hub.access import Caller


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: Path | bytes  # uploads are files, at a path from `Store.new_path`
    caller: Caller
    origin: str  # http://127.0.0.1:PORT
    storage: str  # http://localhost:PORT: as on the real Hub, object storage has another origin

    def json(self) -> dict[str, object]:
        return json.loads(self.bytes())  # type: ignore[no-any-return]

    def bytes(self) -> bytes:
        return self.body.read_bytes() if isinstance(self.body, Path) else self.body


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes | Path = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def as_json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


def refusal(status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None) -> Reply:
    """An error in the form of the real Hub's errors."""
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
    return as_json({"error": message}, status, headers)
