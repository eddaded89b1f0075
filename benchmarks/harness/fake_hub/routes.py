"""The routes of the Hub that huggingface_hub uses, each with the function that answers it."""

import re
from collections.abc import Callable, Mapping
from urllib.parse import unquote

from benchmarks.harness.fake_hub import reading, writing
from benchmarks.harness.fake_hub.messages import Reply, Request
from benchmarks.harness.fake_hub.store import Rejected, Store

Route = Callable[[Store, Request, Mapping[str, str]], Reply]

_ID = r"(?P<repo_id>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>model|dataset)s/{_ID}"
_FILE = rf"/((?P<kind>dataset)s/)?{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"

ROUTES: tuple[tuple[str, str, Route], ...] = (
    ("GET", "/api/whoami-v2", reading.whoami),
    ("GET", rf"{_API}(/revision/(?P<revision>[^/]+))?", reading.info),
    ("GET", rf"{_API}/auth-check", reading.auth_check),
    ("GET", rf"{_API}/discussions", reading.discussions),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)", reading.tree),
    ("GET", rf"{_API}/commits/(?P<revision>[^/]+)", reading.commits),
    ("HEAD", _FILE, reading.resolve),
    ("GET", _FILE, reading.resolve),
    ("GET", "/storage/(?P<sha256>[0-9a-f]{64})", reading.storage),
    ("POST", "/api/repos/create", writing.create),
    ("POST", "/api/validate-yaml", writing.validate_yaml),
    ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", writing.preupload),
    ("POST", rf"/((?P<kind>dataset)s/)?{_ID}\.git/info/lfs/objects/batch", writing.lfs_batch),
    ("PUT", "/upload/(?P<sha256>[0-9a-f]{64})", writing.upload),
    ("POST", "/api/lfs-verify", writing.lfs_verify),
    ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", writing.commit),
)
"""Method, pattern of the whole path, and function."""


def dispatch(store: Store, request: Request) -> Reply:
    """The reply to a request. Raises `Missing` and `Rejected`."""
    for method, pattern, function in ROUTES:
        match = re.fullmatch(pattern, request.path)
        if match and request.method == method:
            return function(store, request, {key: unquote(value or "") for key, value in match.groupdict().items()})
    raise Rejected(404, f"no route {request.method} {request.path}")
