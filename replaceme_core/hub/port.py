"""What the product needs from a Hub, as a Protocol with two implementations: `huggingface.py` and `directory.py`.

One contract test runs over both. They raise `RepositoryNotFound`, `AccessDenied`, `HubUnreachable`, `StaleParent`,
`OutOfSpace`, and their subclasses.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Protocol

from pydantic import SecretStr

from replaceme_core.errors import BrokenModel, InvalidInput, RepositoryNotFound
from replaceme_core.hub.files import JSON_LIMIT, read_json_file

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
"""Of an owner, or of a repository of one."""
REPOSITORY = re.compile(f"{NAME.pattern}/{NAME.pattern}")
TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")
"""Safe in a header."""
DIRECTORY_PREFIX = "dir:"
"""Of a Hub that is a directory."""

REPORT = "replaceme.json"
"""The file of a result that says how it was made, and by which job."""
_JOB = "ReplaceMe-Job: "
"""Begins the line of a commit message that names the job."""


class RepositoryKind(StrEnum):
    MODEL = "model"
    DATASET = "dataset"


@dataclass(frozen=True, kw_only=True)
class RepositoryFile:
    """A file of a repository at one revision: path inside it, size in bytes.

    `digest` is the SHA-256 of a large file (`is_large`, one that git only points to) and where the Hub is a directory,
    else git's own hash of a blob; "" where nobody asks for it.
    """

    path: str
    size: int
    digest: str = field(default="", compare=False)
    is_large: bool = field(default=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A repository at one commit: the 40 hex digits of `revision`, and its files."""

    repo_id: str
    kind: RepositoryKind
    revision: str
    files: tuple[RepositoryFile, ...]
    private: bool
    """Also where the Hub does not say."""
    gated: bool = False
    """Only those may download it who have accepted its conditions on the Hub."""

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each file, by path."""
        return {file.path: file.size for file in self.files}

    def has(self, path: str) -> bool:
        return path in self.sizes

    def file(self, path: str) -> RepositoryFile:
        """The file at `path`. Raises `RepositoryNotFound`."""
        found = self._by_path.get(path)
        if found is None:
            raise RepositoryNotFound(f"{self.kind} {self.repo_id} has no file {path!r} at {self.revision}")
        return found

    @cached_property
    def _by_path(self) -> Mapping[str, RepositoryFile]:
        return {file.path: file for file in self.files}


@dataclass(frozen=True, kw_only=True)
class Publication:
    """One commit: everything under `folder` becomes the content of `repo_id`.

    The last line of the commit message (`trailer`) names the job, by which a retry finds its own commit. `spec_digest`
    identifies what was asked for; it is in the line before. With `create_pr` the commit is not on the main branch but
    in a pull request.
    """

    folder: Path
    repo_id: str
    private: bool
    title: str
    job_id: str
    spec_digest: str | None = None
    create_pr: bool = False

    @property
    def trailer(self) -> str:
        return f"{_JOB}{self.job_id}"

    @property
    def description(self) -> str:
        """The commit message below its title."""
        above = "" if self.spec_digest is None else f"ReplaceMe-Spec: {self.spec_digest}\n"
        return above + self.trailer


@dataclass(frozen=True, kw_only=True)
class ExistingOutput:
    """What a publication would replace, as the write token sees it.

    `job_id` is the job that committed what is there now; `None` if anybody has changed it since.
    `stays_public`: it is public, and no commit changes that.
    """

    repo_id: str
    is_empty: bool
    stays_public: bool
    job_id: str | None


def check_token(token: SecretStr) -> SecretStr:
    """The token, which may end with a line end, as files of secrets do. Raises `ValueError` for what can be none."""
    if not TOKEN.fullmatch(token.get_secret_value().strip()):
        raise ValueError("expected a token such as hf_..., in ASCII and in one line")
    return token


def job_of(message: str) -> str | None:
    """The job that a commit message names."""
    lines = message.splitlines()
    return next((line.removeprefix(_JOB) for line in lines if line.startswith(_JOB)), None)


def replace_nothing(existing: ExistingOutput) -> None:
    """Raises `InvalidInput` unless the repository is empty."""
    if not existing.is_empty:
        raise InvalidInput(f"{existing.repo_id} exists already", field="output.repo_id", value=existing.repo_id)


class Hub(Protocol):
    @property
    def has_pull_requests(self) -> bool: ...

    def resolve(self, repo_id: str, *, kind: RepositoryKind, revision: str | None = None) -> Snapshot:
        """Pin a branch, tag or commit hash (by default the default branch) and list the files of that commit."""

    def download(
        self, snapshot: Snapshot, paths: tuple[str, ...], *, advance: Callable[[float], None] | None = None
    ) -> Path:
        """Download `paths`; returns the directory that holds them, which must not be changed.

        `advance` is called with the part that is done, 0 to 1, and may raise to stop.
        """

    def hold(self, snapshot: Snapshot) -> AbstractContextManager[None]:
        """Protect the downloads of this snapshot from removal until the end of the `with` block."""

    def read_range(self, snapshot: Snapshot, path: str, *, start: int, end: int) -> bytes:
        """The bytes `start` to `end` (not included) of a file, fewer if it ends before. The rest is not downloaded."""

    def as_writer(self) -> "Hub":
        """The same Hub as the owner of the write token sees it: to read what was published there, and nothing else."""

    def namespace(self) -> str:
        """The owner of results that name no output repository: the owner of the write token."""

    def find_publication(self, repo_id: str, job_id: str, *, create_pr: bool = False) -> str | None:
        """The revision of the commit that this job has made, if it is among the recent ones.

        With `create_pr` among those of pull requests that the owner of the write token has made.
        """

    def find_output(self, repo_id: str) -> ExistingOutput | None:
        """What a publication to this model repository would replace; `None` if there is no such repository."""

    def publish(
        self,
        publication: Publication,
        *,
        before_commit: Callable[[], None],
        may_replace: Callable[[ExistingOutput], None] = replace_nothing,
    ) -> str:
        """Create the repository if it is missing, upload, and make exactly one commit; returns its revision.

        `may_replace` is called for a repository that is there, before the upload, and may raise to leave it as it is;
        the commit replaces only what it was shown.
        `before_commit` is called right before the commit and may raise to stop it; large files have been uploaded by
        then, but nothing is visible. What the job has published before is not published again.
        """


def read_hub_json(hub: Hub, snapshot: Snapshot, path: str, *, limit: int = JSON_LIMIT) -> dict[str, object]:
    """The content of a small JSON file such as `config.json`. Raises `BrokenModel` if it is not a JSON object."""
    if snapshot.sizes.get(path, 0) > limit:
        raise BrokenModel(f"{path} is larger than {limit:,} bytes", value=path)
    with hub.hold(snapshot):
        return read_json_file(hub.download(snapshot, (path,)) / path, path, limit=limit)
