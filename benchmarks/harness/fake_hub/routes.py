"""The routes of the fake Hub that huggingface_hub uses: a table of patterns, a function each, no sockets."""

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import yaml

from benchmarks.harness.fake_hub.access import Caller, check_read, check_write
from benchmarks.harness.fake_hub.store import (
    LFS_SUFFIXES,
    REGULAR_LIMIT,
    Blob,
    Commit,
    Missing,
    Rejected,
    Repository,
    Store,
)

COMMITS_PER_PAGE = 50


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: Path | bytes  # uploads are on disk, under `Store.new_path`
    caller: Caller
    origin: str  # http://127.0.0.1:PORT
    storage: str  # http://localhost:PORT, another origin, as the real Hub's object storage is

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


WorkerKind = Callable[[Store, Request, Mapping[str, str]], Reply]
ROUTES: list[tuple[str, re.Pattern[str], WorkerKind]] = []
_ID = r"(?P<repo_id>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>model|dataset)s/{_ID}"


def route(method: str, pattern: str) -> Callable[[WorkerKind], WorkerKind]:
    def register(function: WorkerKind) -> WorkerKind:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


def dispatch(store: Store, request: Request) -> Reply:
    for method, pattern, function in ROUTES:
        match = pattern.fullmatch(request.path)
        if match and request.method == method:
            return function(store, request, {key: unquote(value or "") for key, value in match.groupdict().items()})
    raise Rejected(404, f"no route {request.method} {request.path}")


def _readable(store: Store, request: Request, at: Mapping[str, str]) -> Repository:
    repository = store.repository(at["kind"] or "model", at["repo_id"])
    check_read(request.caller, repository)
    return repository


@route("GET", "/api/whoami-v2")
def whoami(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    if request.caller.user is None:
        raise Rejected(401, "Invalid username or password.")
    return as_json({"type": "user", "name": request.caller.user, "orgs": []})


@route("GET", rf"{_API}(/revision/(?P<revision>[^/]+))?")
def info(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    repository = _readable(store, request, at)
    commit = repository.at(at["revision"] or "main")
    siblings: list[dict[str, object]] = []
    for path, blob in commit.tree.items():
        sibling: dict[str, object] = {"rfilename": path}
        if "blobs" in request.query:
            sibling |= {"size": blob.size, "blobId": blob.git_oid}
            if blob.lfs:
                sibling["lfs"] = {"size": blob.size, "sha256": blob.sha256, "pointerSize": 134}
        siblings.append(sibling)
    return as_json(
        {
            "id": repository.repo_id,
            "author": repository.owner,
            "sha": commit.oid,
            "private": repository.private,
            "lastModified": _date(commit),
            "siblings": siblings,
        }
    )


@route("GET", rf"{_API}/tree/(?P<revision>[^/]+)")
def tree(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    commit = _readable(store, request, at).at(at["revision"])
    return as_json([_entry(path, blob) for path, blob in commit.tree.items()])


@route("GET", rf"{_API}/commits/(?P<revision>[^/]+)")
def commits(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    repository = _readable(store, request, at)
    repository.at(at["revision"])
    page = int(request.query.get("p", ["0"])[0])
    newest = repository.commits[::-1]
    some = newest[page * COMMITS_PER_PAGE : (page + 1) * COMMITS_PER_PAGE]
    more = len(newest) > (page + 1) * COMMITS_PER_PAGE
    link = {"Link": f'<{request.origin}{request.path}?p={page + 1}>; rel="next"'} if more else {}
    return as_json(
        [
            {"id": c.oid, "title": c.title, "message": c.message, "date": _date(c), "authors": [{"user": "tester"}]}
            for c in some
        ],
        headers=link,
    )


def _resolve(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    commit, blob = _readable(store, request, at).file(at["revision"], at["path"])
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
    if blob.lfs:
        linked = {"X-Linked-Size": str(blob.size), "X-Linked-Etag": f'"{blob.sha256}"'}
        location = f"{request.storage}/storage/{blob.sha256}?signature={blob.sha256[:16]}"
        return Reply(302, b"", {**headers, **linked, "Location": location})
    return Reply(200, store.object(blob.sha256), headers)


for _method in ("HEAD", "GET"):
    route(_method, rf"/((?P<kind>dataset)s/)?{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")(_resolve)


@route("GET", "/storage/(?P<sha256>[0-9a-f]{64})")
def storage(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    _check_signed(request, at["sha256"])
    return Reply(200, store.object(at["sha256"]), {"ETag": f'"{at["sha256"]}"', "Accept-Ranges": "bytes"})


@route("POST", "/api/repos/create")
def create(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    wanted = request.json()
    owner = str(wanted.get("organization") or request.caller.user)
    repo_id = f"{owner}/{wanted['name']}"
    check_write(request.caller, owner)
    url = f"{request.origin}/{repo_id}"
    try:
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        store.create(str(wanted.get("type", "model")), repo_id, private=private)
    except Rejected as conflict:
        return as_json({"error": str(conflict), "url": url}, conflict.status)
    return as_json({"url": url, "name": repo_id})


@route("POST", "/api/validate-yaml")
def validate_yaml(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    front = re.match(r"---\n(.*?)\n---", str(request.json()["content"]), re.DOTALL)
    if front is None:
        return as_json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    try:
        yaml.safe_load(front[1])
    except yaml.YAMLError as error:
        return as_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return as_json({"errors": [], "warnings": []})


@route("POST", rf"{_API}/preupload/(?P<revision>[^/]+)")
def preupload(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    repository = _writable(store, request, at)
    present = repository.at(at["revision"]).tree
    files = request.json()["files"]
    assert isinstance(files, list)
    return as_json(
        {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs"
                    if file["path"].endswith(LFS_SUFFIXES) or file["size"] > REGULAR_LIMIT
                    else "regular",
                    "shouldIgnore": False,
                    "oid": present[file["path"]].oid if file["path"] in present else None,
                }
                for file in files
            ]
        }
    )


@route("POST", rf"/((?P<kind>dataset)s/)?{_ID}\.git/info/lfs/objects/batch")
def lfs_batch(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    _writable(store, request, at)
    objects = request.json()["objects"]
    assert isinstance(objects, list)
    answers: list[dict[str, object]] = []
    for wanted in objects:
        oid, size = wanted["oid"], wanted["size"]
        answer: dict[str, object] = {"oid": oid, "size": size}
        if not store.object(oid).is_file():
            upload = f"{request.storage}/upload/{oid}?size={size}&signature={oid[:16]}"
            verify = f"{request.origin}/api/lfs-verify"
            answer["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        answers.append(answer)
    return as_json({"transfer": "basic", "objects": answers})


@route("PUT", "/upload/(?P<sha256>[0-9a-f]{64})")
def upload(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    _check_signed(request, at["sha256"])
    assert isinstance(request.body, Path)
    size = request.body.stat().st_size
    blob = store.adopt(request.body, lfs=True)
    if blob.sha256 != at["sha256"] or [str(size)] != request.query.get("size"):
        if blob.sha256 != at["sha256"]:
            store.object(blob.sha256).unlink()
        raise Rejected(400, "BadDigest: the content is not what was announced")
    return Reply(200, b"", {"ETag": f'"{blob.sha256}"'})


@route("POST", "/api/lfs-verify")
def lfs_verify(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    wanted = request.json()
    store.lfs_blob(str(wanted["oid"]), int(str(wanted["size"])))
    return as_json({"success": True})


@route("POST", rf"{_API}/commit/(?P<revision>[^/]+)")
def commit(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    repository = _writable(store, request, at)
    lines = [json.loads(line) for line in request.bytes().splitlines()]
    header = lines[0]["value"]
    with store.lock:
        if at["revision"] != "main":
            raise Missing("RevisionNotFound", f"Invalid rev id: {at['revision']}")
        if header.get("parentCommit", repository.head.oid) != repository.head.oid:
            raise Rejected(412, "A commit has happened since. Please refresh and try again.")
        files: dict[str, Blob] = dict(repository.head.tree)
        for line in lines[1:]:
            _apply(store, files, line["key"], line["value"])
        made = store.commit(repository, header["summary"], header["description"], files)
    url = f"{request.origin}/{repository.repo_id}/commit/{made.oid}"
    return as_json({"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""})


def _apply(store: Store, files: dict[str, Blob], key: str, value: dict[str, str]) -> None:
    path = value["path"]
    match key:
        case "file":
            content = base64.b64decode(value["content"], validate=True)
            if len(content) > REGULAR_LIMIT:
                raise Rejected(400, f"{path} must be stored as an LFS object")
            files[path] = store.put(content, lfs=False)
        case "lfsFile":
            files[path] = store.lfs_blob(value["oid"], int(value["size"]))
        case "deletedFile":
            if path not in files:
                raise Missing("EntryNotFound", "A file with this name doesn't exist")
            del files[path]
        case _:
            raise Rejected(400, f"unknown operation {key}")


def _writable(store: Store, request: Request, at: Mapping[str, str]) -> Repository:
    repository = _readable(store, request, at)
    check_write(request.caller, repository.owner)
    return repository


def _check_signed(request: Request, sha256: str) -> None:
    """Storage takes a signature and, like the real one, refuses a request that also carries a token."""
    if "Authorization" in request.headers:
        raise Rejected(400, "InvalidArgument: Only one auth mechanism allowed")
    if request.query.get("signature") != [sha256[:16]]:
        raise Rejected(403, "SignatureDoesNotMatch")


def _entry(path: str, blob: Blob) -> dict[str, object]:
    lfs = {"lfs": {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}} if blob.lfs else {}
    return {"type": "file", "path": path, "oid": blob.git_oid, "size": blob.size, **lfs}


def _date(commit: Commit) -> str:
    return commit.date.strftime("%Y-%m-%dT%H:%M:%S.000Z")
