"""Local files for both implementations of the Hub: listing, hashing, JSON."""

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from replaceme_core.errors import AccessDenied, BrokenModel, InvalidInput
from replaceme_core.json_values import shorten, why_not_handled

DEEPEST = 64
JSON_LIMIT = 8 * 1024 * 1024  # bytes; an index of 36,000 tensors, as the largest supported models have, takes 4 MB
JSON_LEVELS = 64
_NOT_CONTENT = frozenset({".git", ".cache"})  # folders of git and of the Hub's own client


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A regular file under some folder: `path` is relative to it, with forward slashes."""

    path: str
    location: Path
    size: int
    inode: int
    modified_ns: int
    changed_ns: int


def walk(folder: Path) -> tuple[LocalFile, ...]:
    """All regular files under `folder`, sorted by path.

    Raises `AccessDenied` for a link that leads out of it, and as `check_names` does.
    """
    home = folder.resolve()
    found: list[LocalFile] = []
    for directory, names, files in os.walk(folder):
        names[:] = [name for name in names if name not in _NOT_CONTENT]
        here = Path(directory)
        check_names(here.joinpath(name).relative_to(folder).as_posix() for name in (*names, *files))
        for name in (*names, *files):
            location = here / name
            if location.is_symlink() and (name in names or not leads_into(location, home)):
                raise AccessDenied(f"{location.relative_to(folder)} is a link that leads out of its repository")
            if location.is_symlink() and not location.exists():
                raise AccessDenied(f"{location.relative_to(folder)} is a link that leads nowhere")
        for name in files:
            location = here / name
            facts = location.stat()
            if stat.S_ISREG(facts.st_mode):
                found.append(
                    LocalFile(
                        path=location.relative_to(folder).as_posix(),
                        location=location,
                        size=facts.st_size,
                        inode=facts.st_ino,
                        modified_ns=facts.st_mtime_ns,
                        changed_ns=facts.st_ctime_ns,
                    )
                )
    return tuple(sorted(found, key=lambda file: file.path))


def check_names(paths: Iterable[str]) -> None:
    """Raises `InvalidInput` for a path of a repository that is not UTF-8, or deeper than 64 folders."""
    for path in paths:
        if path.count("/") >= DEEPEST:
            raise InvalidInput(f"the repository has folders within folders, more than {DEEPEST} deep; use fewer")
        try:
            path.encode()
        except UnicodeEncodeError:
            shown = path.encode("utf-8", "backslashreplace").decode()
            raise InvalidInput(
                f"the repository has a file whose name is not UTF-8: {shorten(shown, 100)}; rename it"
            ) from None


def leads_into(path: Path, home: Path) -> bool:
    """Whether `path`, all links followed, is under `home`. A loop of links is no error here."""
    return Path(os.path.realpath(path)).is_relative_to(home)


def sha256_of(path: Path) -> str:
    """The 64 hex digits of a file's SHA-256."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_hash(files: Iterable[tuple[str, str]]) -> str:
    """40 hex digits that identify these (path, SHA-256) pairs, whatever their order."""
    digest = hashlib.sha256()
    for path, sha256 in sorted(files):
        digest.update(f"{sha256}  {path}\n".encode())
    return digest.hexdigest()[:40]


def is_plain(path: str) -> bool:
    """Whether a path of a repository stays inside the directory that it is joined to."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path and "\\" not in path


def parse_json_object(raw: bytes, path: str) -> dict[str, object]:
    """The JSON object in `raw`; `path` is its name for messages. Raises `BrokenModel` for anything else.

    It is nested at most 64 deep, so that what handles it later may be recursive, and all its text is UTF-8.
    """
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except RecursionError:
        raise _too_deep(path) from None
    except ValueError as error:
        raise BrokenModel(f"{path} is not valid JSON: {error}", field="model", value=path) from None
    if not isinstance(value, dict):
        raise BrokenModel(f"{path} must hold a JSON object, not {type(value).__name__}", field="model", value=path)
    flaw = why_not_handled(value, levels=JSON_LEVELS)
    if flaw is not None:
        raise BrokenModel(f"{path} is no usable JSON: {flaw}", field="model", value=path)
    return value


def job_of(report: Path) -> str | None:
    """The job that a `replaceme.json` names; `None` if it names none, or is no such file."""
    try:
        job_id = read_json_file(report, report.name).get("job_id")
    except (BrokenModel, FileNotFoundError):
        return None
    return job_id if isinstance(job_id, str) else None


def _too_deep(path: str) -> BrokenModel:
    return BrokenModel(f"{path} is nested more than {JSON_LEVELS} deep", field="model", value=path)


def read_json_file(location: Path, path: str) -> dict[str, object]:
    """The JSON object in a file; `path` is its name for messages. Raises `BrokenModel`."""
    with location.open("rb") as stream:
        raw = stream.read(JSON_LIMIT + 1)
    if len(raw) > JSON_LIMIT:
        raise BrokenModel(f"{path} is larger than {JSON_LIMIT:,} bytes", field="model", value=path)
    return parse_json_object(raw, path)
