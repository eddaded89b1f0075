"""Reads a part of a file over HTTP."""

from http import HTTPStatus

from huggingface_hub import get_session
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status

from replaceme_core.errors import HubUnreachable


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
