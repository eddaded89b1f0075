"""What the card of a data set declares: the header of README.md, between two lines of three dashes.

A stranger wrote it. So it is short, only text, lists and objects are read, and nothing in it can refer to another part
of it: time and memory are in proportion to its length.
"""

from pathlib import Path

import yaml

from replaceme_core.errors import InvalidInput

CARD = "README.md"
LONGEST_HEADER = 32 * 1024
"""Characters, and bytes too."""
MOST_LINES = 1000
MOST_ENTRIES = 6000
"""Names, values, and beginnings and ends of lists. About five for each line that declares a split."""
MOST_LEVELS = 32
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, and in all wheels

Value = str | list["Value"] | dict[str, "Value"]


def read_card(path: Path) -> str:
    """The beginning of a card, with all of its header that is read."""
    with path.open("rb") as file:
        return file.read(LONGEST_HEADER + 1024).decode("utf-8", errors="replace")


def header_of(card: str) -> dict[str, Value]:
    """The fields in the header of a card; empty if it has none, or one that is not YAML of the simple kind.

    All values are text: `true` is "true", and `null` is "". Raises `InvalidInput` for a header that is too long or too
    deep, or that has anchors, aliases or tags.
    """
    text = _between_dashes(card.removeprefix("\ufeff"))
    if text is None:
        return {}
    try:
        fields = _Reader().read(text)
    except (yaml.YAMLError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _between_dashes(card: str) -> str | None:
    first, *lines = card[: LONGEST_HEADER + 1024].split("\n")
    if first.rstrip() != "---":
        return None
    end = next((number for number, line in enumerate(lines) if line.rstrip() == "---"), None)
    if end is None and len(card.encode()) <= LONGEST_HEADER:
        return None
    text = "\n".join(lines[:end])
    if len(text.encode()) > LONGEST_HEADER:
        raise _refused(f"longer than {LONGEST_HEADER:,} bytes")
    if end is not None and end > MOST_LINES:
        raise _refused(f"longer than {MOST_LINES:,} lines")
    return text + "\n"


class _Reader:
    """Builds lists and objects from the events of the parser, without recursion."""

    def __init__(self) -> None:
        self._open: list[list[Value] | dict[str, Value]] = [[]]
        self._names: list[str | None] = [None]

    def read(self, text: str) -> Value:
        """The first document. Raises `ValueError` for names that are not text, and as `header_of` and the parser do."""
        root = self._open[0]
        assert isinstance(root, list)
        for number, event in enumerate(yaml.parse(text, Loader=_LOADER)):
            if number > MOST_ENTRIES:
                raise _refused(f"of more than {MOST_ENTRIES:,} names and values")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
                raise _refused("with anchors, aliases or tags")
            match event:
                case yaml.SequenceStartEvent():
                    self._enter([])
                case yaml.MappingStartEvent():
                    self._enter({})
                case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                    self._open.pop()
                    self._names.pop()
                case yaml.ScalarEvent():
                    event.value.encode()  # raises for half a character, which an escape can give
                    empty = event.implicit[0] and event.value in ("~", "null", "Null", "NULL")
                    self._add("" if empty else event.value)
                case yaml.DocumentEndEvent():
                    break
        return root[0] if root else ""

    def _enter(self, value: list[Value] | dict[str, Value]) -> None:
        if len(self._open) > MOST_LEVELS:
            raise _refused(f"nested more than {MOST_LEVELS} deep")
        self._add(value)
        self._open.append(value)
        self._names.append(None)

    def _add(self, value: Value) -> None:
        inside = self._open[-1]
        if isinstance(inside, list):
            inside.append(value)
        elif (name := self._names[-1]) is not None:
            inside[name] = value
            self._names[-1] = None
        elif isinstance(value, str):
            self._names[-1] = value
        else:
            raise ValueError("a name is not text")


def _refused(what: str) -> InvalidInput:
    return InvalidInput(
        f"{CARD} of the data set begins with a header {what}, which is not read; use another data set, or give the "
        "text as a file",
        field="calibration.dataset",
    )
