"""Words for people, and text of strangers made safe for JSON, a terminal, a log or Markdown.

Names, licences, answers of models and errors of libraries come from files that anybody may have written. Knows the
standard library only.
"""

import json
import math
import re
from collections.abc import Callable, Mapping

# controls but the tab, line separators, changes of the direction of writing, halves of characters, no characters
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff"
_IN_LINES, _IN_A_LINE = re.compile(f"[{_CONTROLS}]"), re.compile(f"[\n{_CONTROLS}]")
_SHORT = {"\n": "\\n", "\r": "\\r"}
_MARKUP = re.compile(r"[\\|`*<>\[\]{}#!&~$]|(?<![^\W_])_|_(?![^\W_])")
"""Between two letters or digits an underscore is no markup."""
_BLOCK = re.compile(r"^(\d{1,9}(?=[.)](?:\s|$))|(?=[-+=]))")
"""Where a text begins like an item of a list, a rule, or the line below a heading."""
_ADDRESS = re.compile(r"://|\bwww\.|\w@\w", re.IGNORECASE)
_PLURAL = re.compile(r"^(\w{2,})s\b")
_WORDS = re.compile(r"([\s`|()<>\[\]{}\"',]+)")


def printable(text: str, *, lines: bool = False) -> str:
    """`text` with escapes, as JSON has them, in place of what a terminal obeys; with `lines` it may have several.

    >>> printable("a\\x1b[2J\\nb"), printable("a\\nb", lines=True)
    ('a\\\\u001b[2J\\\\nb', 'a\\nb')
    """
    return (_IN_LINES if lines else _IN_A_LINE).sub(_escaped, text)


def markdown(text: str) -> str:
    """`text` on one line of Markdown, in which it is text: no HTML, no link, no markup, no end of a cell.

    Addresses are set as code: some programs make links even of those whose punctuation is escaped.

    >>> markdown("a | b\\n<br> of https://example.org")
    'a \\\\| b \\\\<br\\\\> of `https://example.org`'
    >>> print(*map(markdown, ("- a", "1. a", "1.5", "a_b", "_a_")), sep="   ")
    \\- a   1\\. a   1.5   a_b   \\_a\\_
    """
    parts = _WORDS.split(printable(" ".join(text.split())))
    safe = (f"`{part}`" if _ADDRESS.search(part) else _MARKUP.sub(r"\\\g<0>", part) for part in parts)
    return _BLOCK.sub(r"\1\\", "".join(safe))


def markdown_code(text: str) -> str:
    """As `markdown`, set as code where it can be: in code nothing can be escaped.

    >>> markdown_code("mit"), markdown_code("a`b")
    ('`mit`', 'a\\\\`b')
    """
    line = printable(" ".join(text.split()))
    return markdown(text) if not line or "`" in line or "|" in line else f"`{line}`"


def _escaped(found: re.Match[str]) -> str:
    return _SHORT.get(found[0], f"\\u{ord(found[0]):04x}")


def counted(number: float, things: str, *, shown: str = "") -> str:
    """The number with its noun, which is given in the plural. `shown` is the number as text, where it has another form.

    >>> counted(1, "blocks"), counted(1200, "blocks"), counted(1, "tokens/s"), counted(0.5, "days")
    ('1 block', '1,200 blocks', '1 token/s', '0.5 days')
    """
    noun = _PLURAL.sub(r"\1", things) if number == 1 else things
    return f"{shown or format(number, ',' if isinstance(number, int) else ',g')} {noun}"


LONGEST_TEXT = 500
"""Characters of the text that stands for a value of an unknown type."""
_MOST_LEVELS = 20


def json_safe(value: object, *, name: Callable[[float], object] = json.dumps, depth: int = 0) -> object:
    """`value` with strings in place of what JSON cannot carry: NaN, infinities, lone surrogates, unknown types.

    Tuples and sets become lists. `name` gives what stands for a number that is not finite, by default what Python's
    json calls it. What is nested deeper than 20 levels becomes "...".

    >>> json_safe({"loss": float("nan"), "blocks": (1, 2)})
    {'loss': 'NaN', 'blocks': [1, 2]}
    """
    match value:
        case float() if not math.isfinite(value):
            return name(value)
        case None | bool() | int() | float():
            return value
        case str():
            return _encodable(value)
        case Mapping() | list() | tuple() | set() | frozenset() if depth >= _MOST_LEVELS:
            return "..."
        case Mapping():
            return {_encodable(str(key)): json_safe(inner, name=name, depth=depth + 1) for key, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [json_safe(inner, name=name, depth=depth + 1) for inner in value]
    return shorten(repr(value))


def read_json(
    text: str, *, levels: int, object_pairs_hook: Callable[[list[tuple[str, object]]], object] | None = None
) -> object:
    """The value of JSON that a stranger wrote: all of it can be stored, shown and handled by code that is recursive.

    Raises `ValueError` for what is no JSON, is nested more than `levels` deep, or has text that is not UTF-8: an escape
    can give half a character.

    >>> read_json('{"a": [1]}', levels=3)
    {'a': [1]}
    """
    try:
        value: object = json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        raise ValueError(f"nested more than {levels} deep") from None
    check_json(value, levels=levels)
    return value


def distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON. Of a name that comes twice one reader takes the first value, another the last: `ValueError`.

    >>> distinct([("ratio", 0.5), ("ratio", 0.25)])
    Traceback (most recent call last):
    ValueError: ratio is given twice
    """
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{shorten(name, 80)} is given twice")
        found[name] = value
    return found


def check_json(value: object, *, levels: int) -> None:
    """Raises `ValueError` for a value of JSON as `read_json` does.

    >>> check_json(["\\ud800"], levels=2)
    Traceback (most recent call last):
    ValueError: text that is not UTF-8: '\\ud800'
    """
    level: list[object] = [value]
    for _ in range(levels):
        inside: list[object] = []
        for one in level:
            if isinstance(one, dict):
                inside += (*one, *one.values())
            elif isinstance(one, list):
                inside += one
            elif isinstance(one, str) and not is_utf8(one):
                raise ValueError(f"text that is not UTF-8: {one[:80]!a}")
        level = inside
    if level:
        raise ValueError(f"nested more than {levels} deep")


def is_utf8(text: str) -> bool:
    """Whether text can be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shorten(text: str, longest: int = LONGEST_TEXT) -> str:
    """`text` in UTF-8, cut to `longest` characters.

    >>> shorten("a long sentence", 9)
    'a long...'
    """
    plain = _encodable(text)
    return plain if len(plain) <= longest else f"{plain[: longest - 3]}..."


def _encodable(text: str) -> str:
    """Lone surrogates, which UTF-8 cannot encode, are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
