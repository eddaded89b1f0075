"""Values as JSON in UTF-8 can carry them. Knows the standard library only."""

import json
import math
from collections.abc import Callable, Mapping

LONGEST_TEXT = 500
"""Characters of the text that stands for a value of an unknown type."""
_MOST_LEVELS = 20


def name_of(value: float) -> str:
    """What JSON's readers call a number that is not finite.

    >>> [name_of(float(text)) for text in ("nan", "inf", "-inf")]
    ['NaN', 'Infinity', '-Infinity']
    """
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def json_safe(value: object, *, name: Callable[[float], str] = name_of, depth: int = 0) -> object:
    """`value` with strings in place of what JSON cannot carry: NaN, infinities, lone surrogates, unknown types.

    Tuples and sets become lists. `name` gives the string for a number that is not finite. What is nested deeper than 20
    levels becomes "...".

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
