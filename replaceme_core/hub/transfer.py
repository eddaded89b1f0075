"""Downloads several files from the Hub at once and reports progress in the caller's thread."""

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self

WORKERS = 4
REPORT_SECONDS = 0.2

Fetch = Callable[[str, type["ByteCounter"], threading.Event], None]
"""Downloads one path and counts its bytes in instances of the given class; ends soon after the event is set."""


class Stopped(Exception):
    """Raised in a transfer's thread to end it, because the caller has stopped."""


class ByteCounter:
    """Used by the client library as a progress bar. It takes a class, so there is a subclass for each transfer."""

    count: Callable[[int], None]

    def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
        self.update(initial)

    def update(self, n: float | None = 1) -> None:
        type(self).count(int(n or 0))

    def update_transfer(self, n: float | None = 1) -> None:
        """Called with bytes on the network, where these differ from bytes of the file."""

    def set_postfix_str(self, *_: object, **__: object) -> None: ...

    def set_transfer_postfix_str(self, *_: object, **__: object) -> None: ...

    def set_description_str(self, *_: object, **__: object) -> None: ...

    def refresh(self) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def fetch_all(sizes: dict[str, int], fetch: Fetch, *, advance: Callable[[float], None] | None) -> None:
    """Fetch every path of `sizes` (bytes). Stops when `advance` raises, and at the first error of a fetch."""
    done = dict.fromkeys(sizes, 0)
    stop = threading.Event()
    total = sum(sizes.values())

    def counter(path: str) -> type[ByteCounter]:
        def count(n: int) -> None:
            if stop.is_set():
                raise Stopped
            done[path] = min(max(done[path] + n, 0), sizes[path])

        return type("PathCounter", (ByteCounter,), {"count": staticmethod(count)})

    def one(path: str) -> None:
        fetch(path, counter(path), stop)
        done[path] = sizes[path]

    pool = ThreadPoolExecutor(max_workers=WORKERS, thread_name_prefix="hub")
    try:
        waiting = {pool.submit(one, path) for path in sizes}
        while waiting:
            finished, waiting = wait(waiting, timeout=REPORT_SECONDS, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
            if advance is not None and waiting:
                advance(sum(done.values()) / total if total else 0.0)
        if advance is not None:
            advance(1.0)
    finally:
        stop.set()
        # not waited for: a thread that waits for the Hub ends by its own timeout
        pool.shutdown(wait=False, cancel_futures=True)
