"""The data of the fake Hub: repositories, their commits, and the objects with the contents of files."""

import hashlib
import shutil
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

LFS_SUFFIXES = (".safetensors", ".bin", ".parquet")
REGULAR_LIMIT = 10 * 1024 * 1024  # bytes; larger files must come as LFS objects
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()

Key = tuple[str, str]  # ("model" or "dataset", "org/name")


class Missing(Exception):
    """Something does not exist, or the caller may not know that it does. `code`: the Hub's X-Error-Code header."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Rejected(Exception):
    """A request that is answered with an HTTP error `status`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Blob:
    sha256: str
    git_oid: str
    size: int
    lfs: bool

    @property
    def oid(self) -> str:
        """The id in ETag and in replies to preupload."""
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    message: str
    tree: Mapping[str, Blob]
    date: datetime


@dataclass
class Repository:
    kind: str
    repo_id: str
    private: bool
    gated: bool = False
    disabled: bool = False
    commits: list[Commit] = field(default_factory=list)  # oldest first
    proposed: list[Commit] = field(default_factory=list)  # one commit for each pull request

    @property
    def owner(self) -> str:
        return self.repo_id.split("/")[0]

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def at(self, revision: str) -> Commit:
        if revision == "main":
            return self.head
        if revision.startswith("refs/pr/"):
            return self.proposed[int(revision.removeprefix("refs/pr/")) - 1]
        for commit in (*self.commits, *self.proposed):
            if commit.oid == revision:
                return commit
        raise Missing("RevisionNotFound", f"Invalid rev id: {revision}")

    def file(self, revision: str, path: str) -> tuple[Commit, Blob]:
        commit = self.at(revision)
        if path not in commit.tree:
            raise Missing("EntryNotFound", f"{path} does not exist at {revision}")
        return commit, commit.tree[path]


class Store:
    """Objects are files under `root`, everything else is in memory. One lock guards all changes."""

    def __init__(self, root: Path) -> None:
        self._objects = root / ".objects"
        self._objects.mkdir(parents=True, exist_ok=True)
        self._repositories: dict[Key, Repository] = {}
        self.lock = threading.RLock()

    def repository(self, kind: str, repo_id: str) -> Repository:
        try:
            return self._repositories[kind, repo_id]
        except KeyError:
            raise Missing("RepoNotFound", "Repository not found") from None

    def create(self, kind: str, repo_id: str, *, private: bool) -> Repository:
        with self.lock:
            if (kind, repo_id) in self._repositories:
                raise Rejected(409, "You already created this model repo")
            repository = Repository(kind, repo_id, private)
            self.commit(repository, "initial commit", "", {".gitattributes": self.put(GITATTRIBUTES, lfs=False)})
            self._repositories[kind, repo_id] = repository
            return repository

    def commit(
        self, repository: Repository, title: str, message: str, tree: Mapping[str, Blob], *, proposed: bool = False
    ) -> Commit:
        with self.lock:
            commit = Commit(
                uuid4().hex + uuid4().hex[:8], title, message, dict(sorted(tree.items())), datetime.now(UTC)
            )
            (repository.proposed if proposed else repository.commits).append(commit)
            return commit

    def put(self, content: bytes, *, lfs: bool) -> Blob:
        path = self.new_path()
        path.write_bytes(content)
        return self.adopt(path, lfs=lfs)

    def new_path(self) -> Path:
        """A path for the content of an object whose hash is not yet known."""
        return self._objects / f".{uuid4().hex}"

    def adopt(self, path: Path, *, lfs: bool) -> Blob:
        """Turn a file at a path from `new_path` into an object."""
        size = path.stat().st_size
        sha256, git = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode())
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                sha256.update(chunk)
                git.update(chunk)
        path.replace(self.object(sha256.hexdigest()))
        return Blob(sha256.hexdigest(), git.hexdigest(), size, lfs)

    def object(self, sha256: str) -> Path:
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise Rejected(422, "not an object name")
        return self._objects / sha256

    def lfs_blob(self, sha256: str, size: int) -> Blob:
        """The blob of an uploaded object. Raises `Rejected` if there is none of that size."""
        path = self.object(sha256)
        if not path.is_file() or path.stat().st_size != size:
            raise Rejected(400, f"LFS pointer pointed to a file that does not exist: {sha256}")
        return Blob(sha256, hashlib.sha1(f"lfs {sha256}".encode()).hexdigest(), size, lfs=True)

    def seed(self, kind: str, repo_id: str, files: Mapping[str, bytes] | Path, *, private: bool = False) -> Commit:
        """Commit `files`, a mapping or a folder; the repository is created if need be."""
        blobs: dict[str, Blob] = {}
        for path, content in files.items() if not isinstance(files, Path) else _files_of(files):
            lfs = path.endswith(LFS_SUFFIXES)
            if isinstance(content, Path):
                copy = self.new_path()
                shutil.copyfile(content, copy)
                blobs[path] = self.adopt(copy, lfs=lfs)
            else:
                blobs[path] = self.put(content, lfs=lfs)
        with self.lock:
            repository = self._repositories.get((kind, repo_id)) or self.create(kind, repo_id, private=private)
            return self.commit(
                repository, "Upload", "", {".gitattributes": repository.head.tree[".gitattributes"], **blobs}
            )

    def seed_all(self, root: Path) -> None:
        """Seed a repository from each `ORG/NAME/` and `datasets/ORG/NAME/` under `root`."""
        for kind, base in (("model", root), ("dataset", root / "datasets")):
            for folder in sorted(base.glob("[!.]*/[!.]*/")):
                if kind == "dataset" or folder.parent.name != "datasets":
                    self.seed(kind, f"{folder.parent.name}/{folder.name}", folder)


def _files_of(folder: Path) -> Iterable[tuple[str, Path]]:
    return [(path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*")) if path.is_file()]
