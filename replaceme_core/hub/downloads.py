"""Downloads files of a snapshot into the cache, continued where a download broke off, once for all processes.

The client library receives the bytes. Its own cache begins a file again after each error that reaches its caller,
compares sizes only, and names files after what a reply says of them. So here a file is received beside its place,
compared with the digest that the Hub lists, and renamed.
"""

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, Literal, cast

from huggingface_hub import get_session, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status
from huggingface_hub.utils.tqdm import silent_tqdm

from replaceme_core.errors import CorruptDownload, HubUnreachable
from replaceme_core.hub.cache import PARTIAL, Place, received_bytes
from replaceme_core.hub.client import hub_errors
from replaceme_core.hub.port import RepositoryFile, Snapshot

AT_ONCE = 4
"""Files."""
REPORT_SECONDS = 0.2
WAIT_SECONDS = 0.1
TRIES = 2
_BLOCK = 1024 * 1024  # bytes
Token = str | Literal[False]


class Stopped(Exception):
    """Raised in a thread that downloads, to end it, because the caller has stopped."""


def file_url(snapshot: Snapshot, path: str, *, endpoint: str) -> str:
    """The address of a file on the Hub, at the commit of the snapshot."""
    kind, revision = snapshot.kind.value, snapshot.revision
    return hf_hub_url(snapshot.repo_id, path, repo_type=kind, revision=revision, endpoint=endpoint)


@dataclass(frozen=True, kw_only=True)
class Fetching:
    """Several files at once, until the first error."""

    snapshot: Snapshot
    place: Place
    endpoint: str
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
                        headers = build_hf_headers(token=self.token)
                        url = file_url(self.snapshot, file.path, endpoint=self.endpoint)
                        http_get(url, target, resume_size=there, headers=headers, tqdm_class=silent_tqdm)
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

    def __init__(self, stream: BinaryIO, file: RepositoryFile, stopping: threading.Event) -> None:
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


def _compare(stream: BinaryIO, file: RepositoryFile) -> None:
    """Raises `CorruptDownload` unless the content is what the Hub lists."""
    size = stream.seek(0, os.SEEK_END)
    if size != file.size:
        raise CorruptDownload(f"{file.path} has {size:,} bytes after the download, the Hub lists {file.size:,}")
    stream.seek(0)
    digest = hashlib.sha256() if file.is_large else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    while block := stream.read(_BLOCK):
        digest.update(block)
    if digest.hexdigest() != file.digest:
        raise CorruptDownload(f"{file.path} has another content after the download than the Hub lists")


@contextmanager
def _alone(beside: Path, stopping: threading.Event) -> Iterator[BinaryIO]:
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


def _is_same(stream: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def fetch_range(url: str, *, start: int, end: int, token: str | bool) -> bytes:
    """The bytes `start` to `end` (not included) of the file at `url`, fewer if it ends before.

    A server that ignores the range and sends the whole file is read up to `end`. Raises errors of the client library,
    and `HubUnreachable` where the reply breaks off.
    """
    headers = {**build_hf_headers(token=token), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    # the token does not follow a redirect to the storage, which is another host
    with get_session().stream("GET", url, headers=headers, follow_redirects=True) as reply:
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
