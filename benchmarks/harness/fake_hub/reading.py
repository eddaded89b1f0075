"""Routes of the fake Hub that read: repositories, their files and commits.

Each function answers one route; `at` holds the named groups of its path.
"""

from collections.abc import Mapping

from benchmarks.harness.fake_hub.access import check_read, check_read_files
from benchmarks.harness.fake_hub.messages import Reply, Request, as_json
from benchmarks.harness.fake_hub.store import Blob, Commit, Rejected, Repository, Store

COMMITS_PER_PAGE = 50


def readable(store: Store, request: Request, at: Mapping[str, str]) -> Repository:
    """The repository that the path names. Raises `Missing` if the caller may not read it."""
    repository = store.repository(at["kind"] or "model", at["repo_id"])
    check_read(request.caller, repository)
    return repository


def whoami(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    if request.caller.user is None:
        raise Rejected(401, "Invalid username or password.")
    return as_json({"type": "user", "name": request.caller.user, "orgs": []})


def info(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    repository = readable(store, request, at)
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
            "gated": "auto" if repository.gated else False,
            "disabled": False,
            "lastModified": _date(commit),
            "siblings": siblings,
        }
    )


def auth_check(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    check_read_files(request.caller, readable(store, request, at))
    return as_json({})


def tree(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    commit = readable(store, request, at).at(at["revision"])
    return as_json([_entry(path, blob) for path, blob in commit.tree.items()])


def commits(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    repository = readable(store, request, at)
    repository.at(at["revision"])
    page = int(request.query.get("p", ["0"])[0])
    proposed = [repository.at(at["revision"])] if at["revision"].startswith("refs/pr/") else []
    newest = [*proposed, *repository.commits[::-1]]
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


def discussions(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    """The pull requests, newest first. There is one author."""
    repository = readable(store, request, at)
    found = [
        {
            "title": commit.title,
            "num": number,
            "author": {"name": "tester"},
            "createdAt": _date(commit),
            "status": "open",
            "repo": {"name": repository.repo_id, "type": repository.kind},
            "isPullRequest": True,
        }
        for number, commit in enumerate(repository.proposed, start=1)
    ]
    return as_json({"count": len(found), "start": 0, "discussions": found[::-1]})


def resolve(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    repository = readable(store, request, at)
    check_read_files(request.caller, repository)
    commit, blob = repository.file(at["revision"], at["path"])
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
    if blob.lfs:
        linked = {"X-Linked-Size": str(blob.size), "X-Linked-Etag": f'"{blob.sha256}"'}
        location = f"{request.storage}/storage/{blob.sha256}?signature={blob.sha256[:16]}"
        return Reply(302, b"", {**headers, **linked, "Location": location})
    return Reply(200, store.object(blob.sha256), headers)


def storage(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    check_signed(request, at["sha256"])
    return Reply(200, store.object(at["sha256"]), {"ETag": f'"{at["sha256"]}"', "Accept-Ranges": "bytes"})


def check_signed(request: Request, sha256: str) -> None:
    """Object storage wants a signature and, as the real one does, refuses a request that also carries a token."""
    if "Authorization" in request.headers:
        raise Rejected(400, "InvalidArgument: Only one auth mechanism allowed")
    if request.query.get("signature") != [sha256[:16]]:
        raise Rejected(403, "SignatureDoesNotMatch")


def _entry(path: str, blob: Blob) -> dict[str, object]:
    lfs = {"lfs": {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}} if blob.lfs else {}
    return {"type": "file", "path": path, "oid": blob.git_oid, "size": blob.size, **lfs}


def _date(commit: Commit) -> str:
    return commit.date.strftime("%Y-%m-%dT%H:%M:%S.000Z")
