"""The texts that come with the package, so that a calibration needs neither a file nor the Hub.

All but the help of Python were written for this project (docs/reference/built-in-texts.md).
"""

import re
from collections.abc import Iterator
from importlib import resources

from replaceme_core.engine.text.document import Conversation, Document
from replaceme_core.errors import InvalidInput
from replaceme_core.request.fields import BUILTIN_TEXTS

PARTS = {
    "builtin:prose": ("stories", "essays"),
    "builtin:dialogue": ("dialogue",),
    "builtin:code": ("code",),
    "builtin:instructions": ("instructions",),
    "builtin:general": ("stories", "essays", "dialogue", "code", "instructions"),
}
"""The files in `texts` that each name stands for."""
PYDOC = "builtin:pydoc-topics"
_SEPARATOR = "\n%%%%\n"
_TURN = re.compile(r"^### (user|assistant)\n", re.MULTILINE)


def builtin_documents(name: str) -> Iterator[Document]:
    """The documents of a built-in text in a fixed order, in which those of its files alternate.

    So every part of the text has documents of every kind, each in proportion. Raises `InvalidInput` for another name.
    """
    if name == PYDOC:
        yield from _pydoc()
    elif name in PARTS:
        files = [read_text_file(part) for part in PARTS[name]]
        sizes = enumerate(map(len, files))
        places = [((index + 0.5) / size, kind, index) for kind, size in sizes for index in range(size)]
        for _, kind, index in sorted(places):
            yield files[kind][index]
    else:
        raise InvalidInput(
            f"there is no built-in text {name!r}; available: {', '.join(BUILTIN_TEXTS)}",
            field="calibration.dataset",
            value=name,
        )


def read_text_file(part: str) -> list[Document]:
    """The documents of one file: conversations where it marks turns with `### user` and `### assistant`."""
    file = resources.files("replaceme_core.engine.text") / "texts" / f"{part}.txt"
    found = file.read_text(encoding="utf-8").removesuffix("\n").split(_SEPARATOR)
    return [_conversation(document) if _TURN.match(document) else document for document in found]


def _conversation(document: str) -> Conversation:
    before, *rest = _TURN.split(document)
    assert before == "", "a conversation begins with a turn"
    turns = zip(rest[::2], rest[1::2], strict=True)
    return [{"role": role, "content": content.strip("\n")} for role, content in turns]


def _pydoc() -> Iterator[str]:
    from pydoc_data.topics import topics

    for title in sorted(topics):
        yield topics[title]
