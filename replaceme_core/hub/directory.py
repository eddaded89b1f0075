"""A directory that acts as a Hub: `ROOT/ORG/NAME/` is a model, `ROOT/datasets/ORG/NAME/` a data set.

A repository is a plain folder as `save_pretrained` writes it; a user may copy one there. It has one branch, and its
revision is a hash of its content. The log of commits and other records are kept under `ROOT/.commits/`, never inside a
repository.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from uuid import uuid4

from replaceme_core.errors import (
    AccessDenied,
    HubUnreachable,
    InvalidInput,
    OutOfSpace,
    ReplaceMeError,
    RepositoryNotFound,
    StaleParent,
)
from replaceme_core.hub.files import (
    LocalFile,
    content_hash,
    find_file,
    leads_into,
    locked,
    sha256_of,
    try_locked,
    walk,
    write_atomically,
)
from replaceme_core.hub.port import (
    REPOSITORY,
    ExistingOutput,
    Hub,
    Publication,
    RepositoryFile,
    RepositoryKind,
    Snapshot,
    job_of,
    replace_nothing,
)
from replaceme_core.library_errors import is_out_of_space, require_space

_SETTLED_NS = 1_000_000_000  # a file touched this recently may change again within one tick of its time stamp


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A commit. `staged` and `replaced` name the directories beside the target that the swap moves."""

    revision: str
    title: str
    trailer: str
    private: bool
    staged: str
    replaced: str


class Journal:
    """The records of one repository: lock, log of commits, a pending commit, hashes of files."""

    def __init__(self, directory: Path, *, target: Path) -> None:
        self._directory = directory
        self._pending, self._log, self._hashes = (
            directory / name for name in ("pending.json", "commits.jsonl", "hashes.json")
        )
        self._target = target
        self._known: dict[str, tuple[list[int], str]] = {}
        self._hashing = Lock()  # who comes meanwhile waits, and need not read the same files again

    @property
    def exists(self) -> bool:
        return self._directory.is_dir()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Lock out swaps. A swap that a crash interrupted is completed first."""
        with ExitStack() as lock:
            with suppress(OSError):  # a hub on read-only storage, where no swap is possible
                if self._pending.exists():
                    with self.writing():
                        pass
                lock.enter_context(self._locked(shared=True))
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock out all readers and writers. A swap that a crash interrupted is completed first."""
        with self._locked():
            self._complete()
            yield

    def commit(self, commit: Commit) -> None:
        """Replace the repository by the staged directory, also if a crash interrupts this. Call it within `writing`.

        Raises `OSError` where it cannot be moved; then it is as it was. One that cannot be logged yet is made.
        """
        write_atomically(self._pending, json.dumps(asdict(commit)))
        try:
            self._complete()
        except OSError:
            if not self._target.with_name(commit.staged).exists():
                return
            replaced = self._target.with_name(commit.replaced)
            if replaced.exists():
                replaced.rename(self._target)
            self._pending.unlink()
            raise

    def commits(self) -> tuple[Commit, ...]:
        """The commits, newest first. A line that a full disk or a power loss cut short is none."""
        try:
            lines = self._log.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return ()
        found: list[Commit] = []
        for line in reversed(lines):
            with suppress(ValueError):
                found.append(Commit(**json.loads(line)))
        return tuple(found)

    def sha256(self, files: tuple[LocalFile, ...]) -> dict[str, str]:
        """SHA-256 by path, of all files. Those whose size, inode and times are unchanged are not read again."""
        with self._hashing:
            before = dict(self._load_hashes())
            hashes = {file.path: self._sha256(file) for file in files}
            self._known = {path: known for path, known in self._known.items() if path in hashes}
            if self._known != before:
                with suppress(OSError):  # they only save time
                    write_atomically(self._hashes, json.dumps(self._known))
            return hashes

    def has(self, file: LocalFile, sha256: str) -> bool:
        """Whether a file has the content that `sha256` gave for it."""
        with self._hashing:
            self._load_hashes()
            return self._sha256(file) == sha256

    def _sha256(self, file: LocalFile) -> str:
        now = time.time_ns()
        facts, digest = self._known.get(file.path, (None, ""))
        if facts != file.facts:
            digest = sha256_of(file.location)
            self._known.pop(file.path, None)
            if now - file.status.st_ctime_ns > _SETTLED_NS:
                self._known[file.path] = (file.facts, digest)
        return digest

    def _complete(self) -> None:
        """Complete the swap that `pending` describes; any of its steps may have been done already."""
        try:
            commit = Commit(**json.loads(self._pending.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return
        staged, replaced = self._target.with_name(commit.staged), self._target.with_name(commit.replaced)
        if staged.exists():
            if self._target.exists():
                self._target.rename(replaced)
            staged.rename(self._target)
        earlier = self.commits()
        if commit not in earlier:
            write_atomically(self._log, "".join(f"{json.dumps(asdict(one))}\n" for one in (*reversed(earlier), commit)))
        self._pending.unlink()
        shutil.rmtree(replaced, ignore_errors=True)

    def _locked(self, *, shared: bool = False) -> AbstractContextManager[int]:
        self._directory.mkdir(parents=True, exist_ok=True)
        return locked(self._directory / "lock", shared=shared)

    def _load_hashes(self) -> dict[str, tuple[list[int], str]]:
        if not self._known:
            with suppress(OSError, ValueError):
                raw: dict[str, tuple[list[int], str]] = json.loads(self._hashes.read_bytes())
                self._known = {path: (facts, digest) for path, (facts, digest) in raw.items()}
        return self._known


BRANCH = "main"
NAMESPACE = "local"
_DATASETS = "datasets"


class DirectoryHub:
    """The `Hub` on a directory. Safe to use from several processes at once."""

    has_pull_requests = False

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().resolve()
        self._journals: dict[Path, Journal] = {}

    def resolve(self, repo_id: str, *, kind: RepositoryKind, revision: str | None = None) -> Snapshot:
        """See `Hub.resolve`. There is no history: `revision` may only be `main` or the present content hash."""
        with _os_errors(repo_id):
            target, journal = self._place(repo_id, kind)
            if not self._root.is_dir():
                raise HubUnreachable("the hub directory does not exist").because(self._root)
            if not target.is_dir() and not journal.exists:
                raise RepositoryNotFound(f"there is no {kind} {repo_id} in the hub directory")
            with journal.reading():
                snapshot = self._snapshot(repo_id, kind)
        if snapshot is None:
            raise RepositoryNotFound(f"there is no {kind} {repo_id} in the hub directory")
        if revision not in (None, BRANCH, snapshot.revision):
            raise RepositoryNotFound(
                f"{kind} {repo_id} has no revision {revision!r}, only {BRANCH!r}, which is now {snapshot.revision}"
            )
        return snapshot

    def download(
        self, snapshot: Snapshot, paths: tuple[str, ...], *, advance: Callable[[float], None] | None = None
    ) -> Path:
        """See `Hub.download`. Nothing is copied, and other files of the directory may have changed."""
        wanted = [snapshot.file(path) for path in paths]
        with _os_errors(snapshot.repo_id):
            target, journal = self._place(snapshot.repo_id, snapshot.kind)
            with journal.reading():
                for listed in wanted:
                    file = find_file(target, listed.path)
                    if file is None or not journal.has(file, listed.digest):
                        raise RepositoryNotFound(
                            f"{snapshot.kind} {snapshot.repo_id} has no file {listed.path!r} at {snapshot.revision}: "
                            "it was changed meanwhile"
                        )
        if advance is not None:
            advance(1.0)
        return target

    def hold(self, snapshot: Snapshot) -> AbstractContextManager[None]:
        """See `Hub.hold`. Nothing is downloaded, so nothing is removed."""
        return nullcontext()

    def read_range(self, snapshot: Snapshot, path: str, *, start: int, end: int) -> bytes:
        location = self.download(snapshot, (path,)) / path
        with _os_errors(snapshot.repo_id), location.open("rb") as stream:
            stream.seek(start)
            return stream.read(end - start)

    def as_writer(self) -> Hub:
        return self

    def namespace(self) -> str:
        return NAMESPACE

    def find_publication(self, repo_id: str, job_id: str, *, create_pr: bool = False) -> str | None:
        with _os_errors(repo_id):
            target, journal = self._place(repo_id, RepositoryKind.MODEL)
            if not journal.exists:
                return None
            with journal.reading():
                return _published(journal, job_id) if target.is_dir() else None

    def find_output(self, repo_id: str) -> ExistingOutput | None:
        try:
            snapshot = self.resolve(repo_id, kind=RepositoryKind.MODEL)
        except RepositoryNotFound:
            return None
        return self._existing(snapshot)

    def publish(
        self,
        publication: Publication,
        *,
        before_commit: Callable[[], None],
        may_replace: Callable[[ExistingOutput], None] = replace_nothing,
    ) -> str:
        """See `Hub.publish`. A copy is made beside the target and swapped in; readers see either the old or the new."""
        repo_id = publication.repo_id
        if publication.create_pr:
            raise InvalidInput("a directory hub has no pull requests", field="output.create_pr", value=True)
        with _os_errors(repo_id):
            target, journal = self._place(repo_id, RepositoryKind.MODEL)
            with journal.writing():
                earlier = _published(journal, publication.job_id) if target.is_dir() else None
                if earlier is not None:
                    return earlier
                parent = self._snapshot(repo_id, RepositoryKind.MODEL)
        if parent is not None:
            may_replace(self._existing(parent))
        with ExitStack() as ends:
            with _os_errors(repo_id), journal.writing():
                target.parent.mkdir(parents=True, exist_ok=True)
                _remove_abandoned(target)
                staged = target.with_name(f".{target.name}.{uuid4().hex}.new")
                staged.mkdir()
                ends.enter_context(try_locked(staged))  # else it counts as abandoned
                ends.callback(shutil.rmtree, staged, ignore_errors=True)
            with _os_errors(repo_id):
                _copy(publication.folder, staged)
                hashes = journal.sha256(walk(staged))
            before_commit()
            with _os_errors(repo_id), journal.writing():
                if self._snapshot(repo_id, RepositoryKind.MODEL) != parent:
                    raise StaleParent(f"{repo_id} was changed by another writer while the result was being copied")
                commit = Commit(
                    revision=content_hash(hashes.items()),
                    title=publication.title,
                    trailer=publication.trailer,
                    private=publication.private,
                    staged=staged.name,
                    replaced=f".{target.name}.{uuid4().hex}.old",
                )
                journal.commit(commit)
                return commit.revision

    def _existing(self, snapshot: Snapshot) -> ExistingOutput:
        _, journal = self._place(snapshot.repo_id, snapshot.kind)
        with _os_errors(snapshot.repo_id):
            latest = journal.commits()[:1]
        return ExistingOutput(
            repo_id=snapshot.repo_id,
            is_empty=not snapshot.files,
            stays_public=False,  # the record of the next commit counts
            job_id=next((job_of(commit.trailer) for commit in latest if commit.revision == snapshot.revision), None),
        )

    def _place(self, repo_id: str, kind: RepositoryKind) -> tuple[Path, Journal]:
        """The repository's folder and its journal. Raises `RepositoryNotFound` for names that cannot be one."""
        if not REPOSITORY.fullmatch(repo_id):
            raise RepositoryNotFound(f'expected a repository as "org/name", got {repo_id!r}')
        if kind is RepositoryKind.MODEL and repo_id.startswith(f"{_DATASETS}/"):
            raise RepositoryNotFound(f"{_DATASETS!r} is the folder of data sets and cannot be the owner of a model")
        target = self._root / repo_id if kind is RepositoryKind.MODEL else self._root / _DATASETS / repo_id
        if not leads_into(target, self._root):
            raise AccessDenied(f"{kind} {repo_id} is a link that leads out of the hub directory")
        if target.is_file() or (target.is_symlink() and not target.exists()):
            raise InvalidInput(f"{repo_id} is a file in the hub directory, or a link that leads nowhere")
        journal = self._journals.get(target)
        return target, journal or Journal(self._root / ".commits" / f"{kind}s" / repo_id, target=target)

    def _snapshot(self, repo_id: str, kind: RepositoryKind) -> Snapshot | None:
        """The present content, under the journal's lock; `None` where there is none."""
        target, journal = self._place(repo_id, kind)
        if not target.is_dir():
            return None
        self._journals.setdefault(target, journal)  # keeps the hashes; names that do not exist are not remembered
        files = walk(target)
        hashes = journal.sha256(files)
        commits = journal.commits()
        return Snapshot(
            repo_id=repo_id,
            kind=kind,
            revision=content_hash(hashes.items()),
            files=tuple(RepositoryFile(path=file.path, size=file.size, digest=hashes[file.path]) for file in files),
            private=bool(commits) and commits[0].private,  # what was put there by hand has no record
        )


def _published(journal: Journal, job_id: str) -> str | None:
    return next((commit.revision for commit in journal.commits() if job_of(commit.trailer) == job_id), None)


def _copy(folder: Path, to: Path) -> None:
    """Copy every file of `folder` to `to` and sync it to disk. Raises `OutOfSpace` beforehand if it cannot fit."""
    files = walk(folder)
    if not files:
        raise InvalidInput("the result holds no files, so there is nothing to publish")
    require_space(to, sum(file.size for file in files), purpose="the publication")
    for file in files:
        destination = to / file.path
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.location, destination)
        with destination.open("rb") as stream:
            os.fsync(stream.fileno())


def _remove_abandoned(target: Path) -> None:
    """Remove what killed publishers left beside the target. Call it with the repository locked for writing."""
    own = f".{target.name}.{'[0-9a-f]' * 32}"  # and not those of a repository whose name only begins with this one
    for replaced in target.parent.glob(f"{own}.old"):
        shutil.rmtree(replaced, ignore_errors=True)
    for staged in target.parent.glob(f"{own}.new"):
        with try_locked(staged) as is_abandoned:
            if is_abandoned:
                shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def _os_errors(repo_id: str) -> Iterator[None]:
    """Turn errors of the file system into errors of a Hub. Only a publication takes space."""
    try:
        yield
    except ReplaceMeError:
        raise
    except PermissionError as error:
        raise AccessDenied(f"the service has no access to {repo_id} in the hub directory").because(error) from error
    except OSError as error:
        if is_out_of_space(error):
            raise OutOfSpace(f"no space left on the device while publishing {repo_id}") from error
        raise HubUnreachable(f"the hub directory cannot be read or written for {repo_id}").because(error) from error
