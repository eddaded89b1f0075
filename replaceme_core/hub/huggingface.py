"""The Hugging Face Hub, or any endpoint with the same protocol.

Tokens are passed with every call, and none is read from the machine: reads use the read token, writes the write token,
and without a token the call is anonymous. Uploads to Xet storage are left to the client library (set
`HF_HUB_DISABLE_XET=1` for an endpoint without it); files are read over plain HTTP.

The client library receives the bytes of a download. Its own cache begins a file again after each error that reaches its
caller, compares sizes only, and names files after what a reply says of them. So here a file is received beside its
place, compared with the digest that the Hub lists, and renamed; once for all processes, and continued where it broke
off.
"""

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from io import BufferedRandom
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal, cast

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session, hf_hub_url
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.hf_api import DatasetInfo, GitCommitInfo, ModelInfo
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status
from huggingface_hub.utils.tqdm import silent_tqdm

from replaceme_core.errors import (
    AccessDenied,
    CorruptDownload,
    DisabledRepository,
    HubUnreachable,
    InvalidInput,
    ReplaceMeError,
    RepositoryNotFound,
)
from replaceme_core.hub.cache import CACHE_BYTES, PARTIAL, Cache, Place, received_bytes
from replaceme_core.hub.client import AS_IT_IS, REQUEST_SECONDS, commit_of, files_of, hub_errors, matching
from replaceme_core.hub.files import walk
from replaceme_core.hub.port import (
    NAME,
    TOKEN,
    ExistingOutput,
    Hub,
    Publication,
    RepositoryFile,
    RepositoryKind,
    Snapshot,
    job_of,
    replace_nothing,
)

Token = str | Literal[False]
MOST_PULL_REQUESTS = 20
_KEPT = frozenset({".gitattributes"})  # created by the Hub: lists what is stored as a large file


class HuggingFaceHub:
    """The `Hub` at `endpoint`. Downloads are cached by commit under `cache`, at most `cache_bytes` of them."""

    has_pull_requests = True

    def __init__(
        self,
        endpoint: str,
        *,
        read_token: str | None,
        write_token: str | None,
        cache: Path,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._read_token = _checked(read_token, "read")
        self._write_token = _checked(write_token, "write")
        self._cache = Cache(cache.expanduser().resolve(), limit=cache_bytes)
        # False, not None: with None the library looks for a token on this machine
        self._api = HfApi(endpoint=self._endpoint, token=False)
        self._owner: str | None = None

    def resolve(self, repo_id: str, *, kind: RepositoryKind, revision: str | None = None) -> Snapshot:
        """See `Hub.resolve`. Raises `GatedRepository` and `DisabledRepository` where the files could not be read."""
        with hub_errors(f"looking up {kind} {repo_id}{f' at {revision!r}' if revision else ''}"):
            return self._info(repo_id, kind=kind, revision=revision, token=self._read_token, check_access=True)

    def download(
        self, snapshot: Snapshot, paths: tuple[str, ...], *, advance: Callable[[float], None] | None = None
    ) -> Path:
        """See `Hub.download`. What is complete in the cache is not fetched again."""
        place, files = self._place(snapshot), [snapshot.file(path) for path in dict.fromkeys(paths)]
        with self._cache.hold(place):
            missing = [file for file in files if not place.has(file.path, digest=file.digest, size=file.size)]
            if missing:  # else no threads are needed, the usual case at submission
                blobs = {file.digest: file.size for file in files}
                with self._cache.reserve(place, blobs, purpose=f"the download of {snapshot.repo_id}"):
                    url = partial(self._url, snapshot)
                    fetching = _Fetching(snapshot=snapshot, place=place, url=url, token=self._read_token)
                    fetching.all_of(missing, advance=advance)
            elif advance is not None:
                advance(1.0)
        return place.snapshot

    def hold(self, snapshot: Snapshot) -> AbstractContextManager[None]:
        return self._cache.hold(self._place(snapshot))

    def read_range(self, snapshot: Snapshot, path: str, *, start: int, end: int) -> bytes:
        """See `Hub.read_range`. A server that ignores the range and sends the whole file is read up to `end`."""
        url, token = self._url(snapshot, snapshot.file(path).path), build_hf_headers(token=self._read_token)
        headers = {**token, **AS_IT_IS, "Range": f"bytes={start}-{end - 1}"}
        # the token does not follow a redirect to the storage, which is another host
        stream = get_session().stream("GET", url, headers=headers, follow_redirects=True)
        with hub_errors(f"reading {path} of {snapshot.kind} {snapshot.repo_id}"), stream as reply:
            if reply.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return b""
            if reply.is_error:
                reply.read()
            hf_raise_for_status(reply)
            first = 0 if reply.status_code == HTTPStatus.OK else start
            received = bytearray()
            for part in reply.iter_raw():
                received += part
                if first + len(received) >= end:
                    break
            else:
                length = reply.headers.get("Content-Length")
                if length is not None and len(received) < int(length):
                    raise HubUnreachable(f"the Hub's reply broke off after {len(received):,} of {length} bytes")
            return bytes(received[start - first : end - first])

    def _url(self, snapshot: Snapshot, path: str) -> str:
        """The address of a file on the Hub, at the commit of the snapshot."""
        kind, revision = snapshot.kind.value, snapshot.revision
        return hf_hub_url(snapshot.repo_id, path, repo_type=kind, revision=revision, endpoint=self._endpoint)

    def as_writer(self) -> Hub:
        found = copy(self)
        found._read_token = self._write_token or self._read_token
        return found

    def namespace(self) -> str:
        if self._owner is None:
            token = self._writer()
            with hub_errors("looking up the owner of the write token"):
                account = self._api.whoami(token=token)
                owner = matching(NAME, account["name"], "the name of an account")
            match account:
                case {"auth": {"accessToken": {"role": "read"}}}:
                    raise AccessDenied("the write token for the Hub may only read; publishing needs one that may write")
            self._owner = owner
        return self._owner

    def find_publication(self, repo_id: str, job_id: str, *, create_pr: bool = False) -> str | None:
        try:
            revisions = self._own_pull_requests(repo_id) if create_pr else ["main"]
            found = (_published(self._commits(repo_id, revision), job_id) for revision in revisions)
            return next((commit for commit in found if commit is not None), None)
        except RepositoryNotFound:
            return None

    def _own_pull_requests(self, repo_id: str) -> list[str]:
        """The references of the newest pull requests, "refs/pr/1"."""
        with hub_errors(f"reading the pull requests of {repo_id}"):
            found = self._api.get_repo_discussions(
                repo_id, author=self.namespace(), discussion_type="pull_request", token=self._writer()
            )
            return [one.git_reference for one in islice(found, MOST_PULL_REQUESTS) if one.git_reference is not None]

    def find_output(self, repo_id: str) -> ExistingOutput | None:
        token = self._write_token or self._read_token
        try:
            with hub_errors(f"looking for the output repository {repo_id}"):
                there = self._info(repo_id, kind=RepositoryKind.MODEL, revision=None, token=token)
            return _existing(there, self._commits(repo_id))
        except RepositoryNotFound:
            return None

    def publish(
        self,
        publication: Publication,
        *,
        before_commit: Callable[[], None],
        may_replace: Callable[[ExistingOutput], None] = replace_nothing,
    ) -> str:
        """See `Hub.publish`. The same commit deletes the files of an earlier result that this one does not have."""
        repo_id, token = publication.repo_id, self._writer()
        doing = f"publishing to {repo_id}"
        files = walk(publication.folder)
        if not files:
            raise InvalidInput("the result holds no files, so there is nothing to publish")
        if not publication.create_pr:
            with hub_errors(doing):
                self._api.create_repo(
                    repo_id, private=publication.private, repo_type="model", exist_ok=True, token=token
                )
        commits = self._commits(repo_id)
        if publication.create_pr:
            earlier = self.find_publication(repo_id, publication.job_id, create_pr=True)
        else:
            earlier = _published(commits, publication.job_id)
        if earlier is not None:
            return earlier
        parent = commits[0].commit_id if commits else None
        present: tuple[RepositoryFile, ...] = ()
        if parent is not None:
            with hub_errors(doing):
                there = self._info(repo_id, kind=RepositoryKind.MODEL, revision=parent, token=token)
            may_replace(_existing(there, commits))
            present = there.files
        additions = [CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=file.location) for file in files]
        with hub_errors(doing):
            self._api.preupload_lfs_files(
                repo_id,
                additions=additions,
                repo_type="model",
                revision="main",
                create_pr=publication.create_pr,
                gitignore_content="#",  # none: with the one in the repository files are left out without an error
                free_memory=False,
                token=token,
            )
        superseded = {file.path for file in present} - {file.path for file in files} - _KEPT
        before_commit()
        try:
            with hub_errors(doing):
                commit = self._api.create_commit(
                    repo_id,
                    operations=[*additions, *(CommitOperationDelete(path, is_folder=False) for path in superseded)],
                    commit_message=publication.title,
                    commit_description=publication.description,
                    parent_commit=parent,
                    repo_type="model",
                    revision="main",
                    create_pr=publication.create_pr,
                    token=token,
                )
        except ReplaceMeError as refusal:
            # the commit may have been made and only its reply lost; then it must not be made again
            try:
                made = self.find_publication(repo_id, publication.job_id, create_pr=publication.create_pr)
            except ReplaceMeError:
                raise refusal from None  # the first error is more useful
            if made is None:
                raise
            return made
        with hub_errors(doing):
            return commit_of(commit.oid)

    def _place(self, snapshot: Snapshot) -> Place:
        folder = repo_folder_name(repo_id=snapshot.repo_id, repo_type=snapshot.kind.value)
        return self._cache.place(folder, snapshot.revision)

    def _info(
        self,
        repo_id: str,
        *,
        kind: RepositoryKind,
        revision: str | None,
        token: Token,
        check_access: bool = False,
    ) -> Snapshot:
        info = self._api.repo_info(
            repo_id,
            repo_type=kind.value,
            revision=revision,
            files_metadata=True,
            timeout=REQUEST_SECONDS,
            token=token,
        )
        assert isinstance(info, ModelInfo | DatasetInfo)
        if info.disabled:
            raise DisabledRepository(f"the Hub has disabled {kind} {repo_id}")
        if info.gated and check_access:  # all may see the list of files, only some the files
            self._api.auth_check(repo_id, repo_type=kind.value, token=token)
        return Snapshot(
            repo_id=repo_id,
            kind=kind,
            revision=commit_of(info.sha),
            files=files_of(info.siblings),
            private=info.private is not False,
            gated=bool(info.gated),
        )

    def _commits(self, repo_id: str, revision: str = "main") -> list[GitCommitInfo]:
        """The commits of a model repository, newest first."""
        with hub_errors(f"reading the commits of {repo_id}"):
            found = self._api.list_repo_commits(
                repo_id, repo_type="model", revision=revision, token=self._write_token or self._read_token
            )
            for commit in found:
                commit_of(commit.commit_id)
            return found

    def _writer(self) -> str:
        if self._write_token is False:
            raise AccessDenied("publishing to the Hub needs a write token, and none is set")
        return self._write_token


def _checked(token: str | None, use: str) -> Token:
    """The token, checked to be safe in a header; `False` without one. The error does not contain it."""
    token = token.strip() if token else None
    if not token:
        return False
    if not TOKEN.fullmatch(token):
        raise AccessDenied(f"the {use} token for the Hub has characters that no token can have")
    return token


def _existing(snapshot: Snapshot, commits: list[GitCommitInfo]) -> ExistingOutput:
    return ExistingOutput(
        repo_id=snapshot.repo_id,
        is_empty=snapshot.sizes.keys() <= _KEPT,
        stays_public=not snapshot.private,
        job_id=next((job_of(commit.message) for commit in commits if commit.commit_id == snapshot.revision), None),
    )


def _published(commits: list[GitCommitInfo], job_id: str) -> str | None:
    return next((commit.commit_id for commit in commits if job_of(commit.message) == job_id), None)


AT_ONCE = 4
"""Files."""
REPORT_SECONDS = 0.2
WAIT_SECONDS = 0.1
TRIES = 2


class Stopped(Exception):
    """Raised in a thread that downloads, to end it, because the caller has stopped."""


@dataclass(frozen=True, kw_only=True)
class _Fetching:
    """Several files at once, until the first error."""

    snapshot: Snapshot
    place: Place
    url: Callable[[str], str]
    token: Token
    stopping: threading.Event = field(default_factory=threading.Event)

    def all_of(self, files: Sequence[RepositoryFile], *, advance: Callable[[float], None] | None) -> None:
        """Fetch the files. Stops when `advance` raises."""
        sizes = {file.digest: file.size for file in files}
        total = max(1, sum(sizes.values()))
        pool = ThreadPoolExecutor(max_workers=AT_ONCE, thread_name_prefix="hub")
        try:
            waiting = {pool.submit(self._one, file) for file in files}
            while waiting:
                finished, waiting = wait(waiting, timeout=REPORT_SECONDS, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                if advance is not None:
                    received = sum(min(size, received_bytes(self.place.blob(one))) for one, size in sizes.items())
                    advance(received / total if waiting else 1.0)
        finally:
            self.stopping.set()
            # not waited for: a thread that waits for the Hub ends by its own timeout
            pool.shutdown(wait=False, cancel_futures=True)

    def _one(self, file: RepositoryFile) -> None:
        with hub_errors(f"downloading {file.path} of {self.snapshot.kind} {self.snapshot.repo_id}"):
            self._blob(self.place.blob(file.digest), file)
            self.place.link(file.path, file.digest)

    def _blob(self, blob: Path, file: RepositoryFile) -> None:
        """Make `blob` the content of `file`. While another process downloads it, wait for that one.

        Raises `CorruptDownload` if it was twice not what the Hub lists, `Stopped` once `stopping` is set, and errors
        of the client library. What was received until then is kept for the next call. The address is asked for again
        each time, since one that was signed for storage is valid briefly; the client sends the token to the Hub only.
        """
        beside = blob.with_name(blob.name + PARTIAL)
        beside.parent.mkdir(parents=True, exist_ok=True)
        with _alone(beside, self.stopping) as stream:
            if blob.exists() and blob.stat().st_size == file.size:
                beside.unlink()
                return
            for tries_left in reversed(range(TRIES)):
                try:
                    there = stream.seek(0, os.SEEK_END)
                    if there > file.size:
                        there = stream.seek(stream.truncate(0))
                    if there != file.size:
                        target = cast(BinaryIO, _Bounded(stream, file, self.stopping))
                        headers = build_hf_headers(token=self.token) | AS_IT_IS
                        http_get(
                            self.url(file.path), target, resume_size=there, headers=headers, tqdm_class=silent_tqdm
                        )
                    _compare(stream, file)
                    break
                except CorruptDownload:
                    stream.truncate(0)
                    if not tries_left:
                        beside.unlink()
                        raise
            os.fsync(stream.fileno())
            beside.replace(blob)


class _Bounded:
    """The file that a download is written to: takes no more bytes than the Hub lists, and none once it is stopped."""

    def __init__(self, stream: BufferedRandom, file: RepositoryFile, stopping: threading.Event) -> None:
        self.seek, self.tell, self.truncate = stream.seek, stream.tell, stream.truncate
        self._stream = stream
        self._file = file
        self._stopping = stopping

    def write(self, data: bytes) -> int:
        if self._stopping.is_set():
            raise Stopped
        if self.tell() + len(data) > self._file.size:
            raise CorruptDownload(f"{self._file.path} has more bytes than the {self._file.size:,} that the Hub lists")
        return self._stream.write(data)


def _compare(stream: BufferedRandom, file: RepositoryFile) -> None:
    """Raises `CorruptDownload` unless the content is what the Hub lists."""
    size = stream.seek(0, os.SEEK_END)
    if size != file.size:
        raise CorruptDownload(f"{file.path} has {size:,} bytes after the download, the Hub lists {file.size:,}")
    stream.seek(0)
    start = hashlib.sha256() if file.is_large else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    if hashlib.file_digest(stream, lambda: start).hexdigest() != file.digest:
        raise CorruptDownload(f"{file.path} has another content after the download than the Hub lists")


@contextmanager
def _alone(beside: Path, stopping: threading.Event) -> Iterator[BufferedRandom]:
    """The file beside a blob, locked."""
    while True:
        with os.fdopen(os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if stopping.wait(WAIT_SECONDS):
                    raise Stopped from None
                continue
            if _is_same(stream, beside):  # else the other process has completed or removed it meanwhile
                yield stream
                return


def _is_same(stream: BufferedRandom, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False
