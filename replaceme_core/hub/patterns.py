"""Matches the patterns of a data set's card against its files, in a number of steps that is known beforehand.

A stranger wrote both. A regular expression made of a pattern can take years; here all ways to match are followed at
once, one bit for each place in the pattern, so that a character of a name is one step.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from replaceme_core.errors import InvalidInput
from replaceme_core.json_values import shorten

LONGEST_PATTERN = 512
LONGEST_NAME = 1024
MOST_STEPS = 150_000
"""For all patterns of a split and all files together: about a tenth of a second."""
_ELEMENT = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", re.DOTALL)
_FIELD = "calibration.dataset"


@dataclass(frozen=True, kw_only=True)
class _Class:
    """Letters in brackets: some, or with `negated` all others. Never a slash."""

    place: int
    singles: frozenset[str]
    ranges: tuple[tuple[str, str], ...]
    negated: bool

    def has(self, letter: str) -> bool:
        inside = letter in self.singles or any(first <= letter <= last for first, last in self.ranges)
        return letter != "/" and inside != self.negated


@dataclass(kw_only=True)
class Pattern:
    """A pattern: `*` and `?` do not cross folders, `**` does, `**/` is any number of folders, `[a-z]` one of these.

    The sets are bits: bit p is the place before element p. Made by `read_pattern`.
    """

    prefix: str
    """The name begins with it: most names need no more than this comparison."""
    suffix: str | None = None
    """For a pattern that is the prefix, one `*` or `**`, and this: no steps are needed."""
    crosses: bool = False
    """Whether that one is `**`."""
    letters: dict[str, int] = field(default_factory=dict)
    """Places where this letter leads to the next place."""
    any_letter: int = 0
    classes: list[_Class] = field(default_factory=list)
    stars: int = 0
    """Places that a letter other than a slash may stay at; each may be left without a letter."""
    doubles: int = 0
    """The same for every letter."""
    entries: int = 0
    """Places before `**/`, which lead at once to the next place, where letters stay, and to the one after that."""
    folders: int = 0
    """Places where every letter may stay, and a slash leads to the next place."""
    end: int = 0
    _known: dict[str, int] = field(default_factory=dict)

    def matches(self, name: str) -> tuple[bool, int]:
        """Whether the whole `name` matches, and the steps that it took."""
        if not name.startswith(self.prefix):
            return False, 1
        if self.suffix is not None:
            between = name[len(self.prefix) : len(name) - len(self.suffix)]
            fits = name.endswith(self.suffix) and len(name) >= len(self.prefix) + len(self.suffix)
            return fits and (self.crosses or "/" not in between), 1
        known, inside, outside = self._known, self.stars | self.doubles | self.folders, self.doubles | self.folders
        places, at, steps = self._spread(1), len(self.prefix), 1
        while places and at < len(name):
            if not places & ~self.folders:  # only a slash leads on
                at = name.find("/", at)
                if at < 0:
                    return False, steps
            letter = name[at]
            leads = known.get(letter)
            if leads is None:
                steps += self._effort
                leads = known[letter] = self._leads(letter)
            places = self._spread(((places & leads) << 1) | (places & (outside if letter == "/" else inside)))
            at += 1
            steps += 1
        return bool(places >> self.end), steps

    def _leads(self, letter: str) -> int:
        """The places where `letter` leads to the next one."""
        places = self.letters.get(letter, 0)
        if letter == "/":
            return places | self.folders
        for one in self.classes:
            if one.has(letter):
                places |= one.place
        return places | self.any_letter

    @property
    def _effort(self) -> int:
        """Steps that a letter takes when it is seen first."""
        return sum(len(one.ranges) + 1 for one in self.classes)

    def _spread(self, places: int) -> int:
        """Add the places that are reached without a letter. Elements that may be empty never follow each other."""
        if entered := places & self.entries:
            places |= entered << 1 | entered << 2
        return places | (places & (self.stars | self.doubles)) << 1


def read_pattern(text: str) -> Pattern:
    """The pattern that `text` is. Raises `InvalidInput` if it is too long."""
    if len(text) > LONGEST_PATTERN:
        raise InvalidInput(
            f"the pattern {shorten(text, 80)!r} in the card of the data set has {len(text):,} characters; at most "
            f"{LONGEST_PATTERN} are read",
            field=_FIELD,
        )
    elements = _simplified(_ELEMENT.findall(text))
    plain = next((place for place, one in enumerate(elements) if _is_special(one)), len(elements))
    pattern = Pattern(prefix="".join(elements[:plain]))
    elements = elements[plain:]
    if elements and elements[0] in ("*", "**") and not any(map(_is_special, elements[1:])):
        pattern.suffix, pattern.crosses = "".join(elements[1:]), elements[0] == "**"
        return pattern
    place = 0
    for element in elements:
        bit = 1 << place
        match element:
            case "*":
                pattern.stars |= bit
            case "**":
                pattern.doubles |= bit
            case "**/":
                pattern.entries |= bit
                pattern.folders |= bit << 1
                place += 1
            case "?":
                pattern.any_letter |= bit
            case _ if _is_special(element):
                pattern.classes.append(_class(element, bit))
            case _:
                pattern.letters[element] = pattern.letters.get(element, 0) | bit
        place += 1
    pattern.end = place
    return pattern


def _is_special(element: str) -> bool:
    return element in ("*", "**", "**/", "?") or len(element) > 1


def _simplified(elements: list[str]) -> list[str]:
    """The same pattern, in which no element that may be empty follows another: two of them are as good as one."""
    found: list[str] = []
    for element in elements:
        if found and found[-1] in ("*", "**", "**/") and element in ("*", "**", "**/"):
            both = {found[-1], element}
            found[-1] = element if len(both) == 1 else "**"  # folders and a name are any path, too
        else:
            found.append(element)
    return found


def _class(element: str, place: int) -> _Class:
    inside = element[1:-1]
    negated = inside[0] in "!^" and len(inside) > 1
    inside = inside[1:] if negated else inside
    singles: set[str] = set()
    ranges: list[tuple[str, str]] = []
    while inside:
        if len(inside) > 2 and inside[1] == "-":
            ranges.append((inside[0], inside[2]))
            inside = inside[3:]
        else:
            singles.add(inside[0])
            inside = inside[1:]
    return _Class(place=place, singles=frozenset(singles), ranges=tuple(ranges), negated=negated)


class Matcher:
    """Tells which names match one of the patterns, as long as there are steps left."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [read_pattern(text) for text in patterns]
        self._steps_left = MOST_STEPS

    def matches(self, name: str) -> bool:
        """Whether `name` matches a pattern. Raises `InvalidInput` when the steps are used up."""
        if len(name) > LONGEST_NAME:
            return False
        for pattern in self._patterns:
            fits, steps = pattern.matches(name)
            self._steps_left -= steps
            if self._steps_left < 0:
                raise InvalidInput(
                    "the patterns in the card of the data set are too many, or have too many wildcards, for its files; "
                    "name another config or split, or give the text as a file",
                    field=_FIELD,
                )
            if fits:
                return True
        return False
