"""Fetches a file into the cache, continued where a download broke off, once for all processes; or a part of a file.

The client library's own function begins again after each error that reaches its caller, and compares sizes only.
"""

import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, Literal

from huggingface_hub import get_session
from huggingface_hub.file_download import http_get
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status

from replaceme_core.errors import CorruptDownload, HubUnreachable
from replaceme_core.hub.cache import PARTIAL
from replaceme_core.hub.port import RepositoryFile
from replaceme_core.hub.transfer import ByteCounter, Stopped

WAIT_SECONDS = 0.1
TRIES = 2
_BLOCK = 1024 * 1024  # bytes


def fetch_blob(
    url: str,
    blob: Path,
    file: RepositoryFile,
    *,
    token: str | Literal[False],
    counter: type[ByteCounter],
    stopping: threading.Event,
) -> None:
    """Make `blob` the content of `file`. While another process downloads it, wait for that one.

    Raises `CorruptDownload` if it was twice not what the Hub lists, `Stopped` once `stopping` is set, and the errors of
    the client library. What was received until then is kept for the next call.
    """
    partial = blob.with_name(blob.name + PARTIAL)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with _alone(partial, counter, stopping) as stream:
        if blob.exists() and blob.stat().st_size == file.size:
            partial.unlink()
            return
        for _ in range(TRIES):
            try:
                _receive(url, stream, file, token=token, counter=_bounded(counter, file))
                _compare(stream, file)
            except CorruptDownload as error:
                corrupt = error
                counter(initial=-stream.seek(0, os.SEEK_END))
                stream.truncate(0)
                continue
            os.fsync(stream.fileno())
            partial.replace(blob)
            return
        partial.unlink()
        raise corrupt


def _receive(
    url: str, stream: BinaryIO, file: RepositoryFile, *, token: str | Literal[False], counter: type[ByteCounter]
) -> None:
    """Append what is missing. The address is asked for again, since one that was signed for storage is valid briefly.

    The token goes to the Hub only: the client drops it where a redirect leads to another host.
    """
    there = stream.seek(0, os.SEEK_END)
    if there == file.size:
        counter(initial=there)
        return
    try:
        http_get(url, stream, resume_size=there, headers=build_hf_headers(token=token), tqdm_class=counter)
    finally:
        stream.flush()


def _bounded(counter: type[ByteCounter], file: RepositoryFile) -> type[ByteCounter]:
    """The counter, which raises `CorruptDownload` where more arrives than the file has."""

    class Bounded(counter):  # type: ignore[misc,valid-type]
        received = 0

        def update(self, n: float | None = 1) -> None:
            self.received += int(n or 0)
            if self.received > file.size:
                raise CorruptDownload(f"{file.path} has more bytes than the {file.size:,} that the Hub lists")
            super().update(n)

    return Bounded


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
def _alone(partial: Path, counter: type[ByteCounter], stopping: threading.Event) -> Iterator[BinaryIO]:
    """The partial file, locked. While another process has it, its progress is counted as ours."""
    counted = 0
    while True:
        with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                size = os.fstat(stream.fileno()).st_size
                counter(initial=size - counted)
                counted = size
                if stopping.wait(WAIT_SECONDS):
                    raise Stopped from None
                continue
            if _is_same(stream, partial):  # else the other process has completed or removed it meanwhile
                counter(initial=-counted)
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
