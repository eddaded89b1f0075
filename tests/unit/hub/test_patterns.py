"""Patterns against names, compared with the same pattern as a regular expression."""

import random
import re

import pytest

from replaceme_core.errors import InvalidInput
from replaceme_core.hub.patterns import LONGEST_NAME, MOST_STEPS, Matcher, read_pattern

_PIECES = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def as_expression(pattern: str) -> re.Pattern[str]:
    pieces = re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", pattern)
    return re.compile("".join(_PIECES.get(piece) or _bracket(piece) for piece in pieces))


def _bracket(piece: str) -> str:
    if len(piece) == 1:
        return re.escape(piece)
    inside = re.escape(piece[1:-1]).replace(r"\-", "-").replace("!", "^", piece.startswith("[!"))
    return f"(?!/)[{inside}]"


def test_patterns_mean_what_the_expressions_mean() -> None:
    chance = random.Random(0)
    pieces = ["a", "b", "/", "*", "**", "**/", "?", "[ab]", "[!a]", "[a-b]", "["]
    matched = 0
    for _ in range(20_000):
        pattern = "".join(chance.choice(pieces) for _ in range(chance.randint(0, 7)))
        name = "".join(chance.choice("abc/") for _ in range(chance.randint(0, 8)))
        expected = as_expression(pattern).fullmatch(name) is not None
        assert read_pattern(pattern).matches(name)[0] == expected, (pattern, name)
        matched += expected
    assert matched > 1_000


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("data/train-*", "data/train-00000-of-00001.parquet", True),
        ("data/train-*", "data/train-0/x.parquet", False),
        ("**/*.jsonl", "x.jsonl", True),
        ("**/*.jsonl", "a/b/x.jsonl", True),
        ("a*a", "a", False),
        ("data/[0-9][0-9].txt", "data/07.txt", True),
        ("data/[!0-9]*.txt", "data/07.txt", False),
        ("a[", "a[", True),
        ("[]", "[]", True),
        ("[!]", "!", True),
        ("a.b", "axb", False),
        ("é*", "été", True),
        ("", "", True),
    ],
)
def test_examples(pattern: str, name: str, expected: bool) -> None:
    assert read_pattern(pattern).matches(name)[0] is expected


def test_names_that_are_too_long_match_nothing() -> None:
    assert Matcher(["*"]).matches("a" * LONGEST_NAME)
    assert not Matcher(["*"]).matches("a" * (LONGEST_NAME + 1))


def test_steps_are_limited_over_all_names() -> None:
    matcher = Matcher(["*a*b"])
    names = MOST_STEPS // 1000
    for _ in range(names - 1):
        assert not matcher.matches("a" * 999)
    with pytest.raises(InvalidInput, match="too many wildcards, for its files"):
        matcher.matches("a" * 1001)


def test_usual_patterns_are_matched_with_many_names() -> None:
    """A comparison of the beginning or of the end is one step, and folders are passed over whole."""
    matcher = Matcher(["data/en/*.parquet", "*.jsonl", "**/*.csv", "**/train-*"])
    for number in range(10_000):
        assert not matcher.matches(f"data/fr/validation-{number}.parquet")
