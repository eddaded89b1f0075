"""The Hugging Face Hub, or any endpoint with the same protocol.

Tokens are passed with every call, and none is read from the machine: reads use the read token, writes the write token,
and without a token the call is anonymous. Uploads to Xet storage are left to the client library (set
`HF_HUB_DISABLE_XET=1` for an endpoint without it); files are read over plain HTTP.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import copy
from itertools import islice
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import DatasetInfo, GitCommitInfo, ModelInfo

from replaceme_core.errors import (
    AccessDenied,
    DisabledRepository,
    InvalidInput,
    ReplaceMeError,
    RepositoryNotFound,
)
from replaceme_core.hub.cache import CACHE_BYTES, Cache, Place
from replaceme_core.hub.client import REQUEST_SECONDS, commit_of, files_of, hub_errors, matching
from replaceme_core.hub.downloads import Fetching, Token, fetch_range, file_url
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
                    fetching = Fetching(snapshot=snapshot, place=place, endpoint=self._endpoint, token=self._read_token)
                    fetching.all_of(missing, advance=advance)
            elif advance is not None:
                advance(1.0)
        return place.snapshot

    def hold(self, snapshot: Snapshot) -> AbstractContextManager[None]:
        return self._cache.hold(self._place(snapshot))

    def read_range(self, snapshot: Snapshot, path: str, *, start: int, end: int) -> bytes:
        url = file_url(snapshot, snapshot.file(path).path, endpoint=self._endpoint)
        with hub_errors(f"reading {path} of {snapshot.kind} {snapshot.repo_id}"):
            return fetch_range(url, start=start, end=end, token=self._read_token)

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

    def find_publication(self, repo_id: str, trailer: str, *, create_pr: bool = False) -> str | None:
        try:
            revisions = self._own_pull_requests(repo_id) if create_pr else ["main"]
            found = (_published(self._commits(repo_id, revision), trailer) for revision in revisions)
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
            earlier = self.find_publication(repo_id, publication.trailer, create_pr=True)
        else:
            earlier = _published(commits, publication.trailer)
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
                made = self.find_publication(repo_id, publication.trailer, create_pr=publication.create_pr)
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


def _published(commits: list[GitCommitInfo], trailer: str) -> str | None:
    return next((commit.commit_id for commit in commits if trailer in commit.message.splitlines()), None)
