"""Routes of the fake Hub that write: creation of repositories, uploads and commits.

Each function answers one route; `at` holds the named groups of its path.
"""

import base64
import json
import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

import yaml

from benchmarks.harness.fake_hub.access import check_write
from benchmarks.harness.fake_hub.messages import Reply, Request, as_json
from benchmarks.harness.fake_hub.reading import check_signed, readable
from benchmarks.harness.fake_hub.store import LFS_SUFFIXES, REGULAR_LIMIT, Blob, Missing, Rejected, Repository, Store


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


def validate_yaml(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    front = re.match(r"---\n(.*?)\n---", str(request.json()["content"]), re.DOTALL)
    if front is None:
        return as_json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    try:
        header = yaml.safe_load(front[1])
    except yaml.YAMLError as error:
        return as_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
    results = [one for model in header.get("model-index", ()) for one in model["results"]]
    wrong = [name for one in results if not _DATA_SET.fullmatch(name := one["dataset"]["type"])]
    errors = [{"message": f'"dataset.type" with value "{name}" fails to match the required pattern'} for name in wrong]
    return as_json({"errors": errors, "warnings": []}, 400 if errors else 200)


_DATA_SET = re.compile(r"([\w-]+/)?[\w.-]+", re.ASCII)


def preupload(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    repository = _writable(store, request, at)
    present = repository.at(at["revision"]).tree
    files, ignored = request.json()["files"], request.json().get("gitIgnore")
    assert isinstance(files, list)
    if ignored is None and ".gitignore" in present:
        ignored = store.object(present[".gitignore"].sha256).read_text()
    patterns = str(ignored or "").split()
    return as_json(
        {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs"
                    if file["path"].endswith(LFS_SUFFIXES) or file["size"] > REGULAR_LIMIT
                    else "regular",
                    "shouldIgnore": any(fnmatch(file["path"], pattern) for pattern in patterns),
                    "oid": present[file["path"]].oid if file["path"] in present else None,
                }
                for file in files
            ]
        }
    )


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


def upload(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    check_signed(request, at["sha256"])
    assert isinstance(request.body, Path)
    size = request.body.stat().st_size
    blob = store.adopt(request.body, lfs=True)
    if blob.sha256 != at["sha256"] or [str(size)] != request.query.get("size"):
        if blob.sha256 != at["sha256"]:
            store.object(blob.sha256).unlink()
        raise Rejected(400, "BadDigest: the content is not what was announced")
    return Reply(200, b"", {"ETag": f'"{blob.sha256}"'})


def lfs_verify(store: Store, request: Request, at: Mapping[str, str]) -> Reply:
    wanted = request.json()
    store.lfs_blob(str(wanted["oid"]), int(str(wanted["size"])))
    return as_json({"success": True})


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
        proposed = "create_pr" in request.query
        made = store.commit(repository, header["summary"], header["description"], files, proposed=proposed)
    url = f"{request.origin}/{repository.repo_id}/commit/{made.oid}"
    answer = {"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""}
    if proposed:
        number = len(repository.proposed)
        answer["pullRequestUrl"] = f"{request.origin}/{repository.repo_id}/discussions/{number}"
    return as_json(answer)


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
    repository = readable(store, request, at)
    check_write(request.caller, repository.owner)
    return repository
