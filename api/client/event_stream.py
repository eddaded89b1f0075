"""Server-sent events, from bytes to messages. No I/O."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Message:
    """One event: `id` is what to resume behind, `data` the body."""

    id: str
    data: str


class EventParser:
    """Reads the form that https://html.spec.whatwg.org/multipage/server-sent-events.html describes.

    Lines end with CR, LF or both, and with nothing else: text may contain other separators of lines.

    >>> parser = EventParser()
    >>> parser.feed(b"retry: 2000\\nid: 3\\nda"), parser.feed(b'ta: {}\\n\\n'), parser.retry_seconds
    ([], [Message(id='3', data='{}')], 2.0)
    """

    def __init__(self) -> None:
        self.retry_seconds: float | None = None
        self._rest = b""
        self._id = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Message]:
        """The messages that are complete with this chunk."""
        text = self._rest + chunk
        held = b"\r" if text.endswith(b"\r") else b""  # its line feed may be in the next chunk
        text = text.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._rest = rest + held
        return [message for line in lines if (message := self._line(line.decode("utf-8", "replace"))) is not None]

    def _line(self, line: str) -> Message | None:
        if not line:
            data, self._data = self._data, []
            return Message(id=self._id, data="\n".join(data)) if data else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "id" if "\0" not in value:
                self._id = value
            case "data":
                self._data.append(value)
            case "retry" if value.isascii() and value.isdigit():
                self.retry_seconds = int(value) / 1000
        return None
