"""What the card of the source model says that also holds for the smaller one: its licence and its languages.

A stranger wrote it, and what is taken from it goes into our card's header. So only values of the kind that the Hub
knows are taken.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from replaceme_core.errors import InvalidInput
from replaceme_core.hub.data_files import Value, header_of, read_card
from replaceme_core.hub.model_files import CARD, is_terms
from replaceme_core.wording import printable

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
_LINK = re.compile(r"https?://[^\s<>\"']{1,300}|\w[\w.-]{0,99}", re.ASCII)
_LINE = re.compile(r".{1,200}")
OTHER = "other"
"""The Hub's word for a licence that is none of its list."""


@dataclass(frozen=True, kw_only=True)
class BaseCard:
    """`licence` and `languages` are words of the Hub; `name` and `link` belong to the licence `other`.

    `terms` are the files of licence, notice and use policy that lie beside the weights.
    """

    licence: str | None = None
    name: str | None = None
    link: str | None = None
    languages: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()


def read_base_card(directory: Path) -> BaseCard:
    """Of the model in `directory`. What is missing or of another kind is left out."""
    terms = tuple(sorted(path.name for path in directory.iterdir() if is_terms(path.name) and path.is_file()))
    try:
        header = header_of(read_card(directory / CARD)) if (directory / CARD).is_file() else {}
    except InvalidInput:  # a header that is not read
        header = {}
    licence = _matching(header.get("license"), _LICENSE)
    if licence is None and terms:
        return BaseCard(
            licence=OTHER,
            name="terms-of-the-original-model",
            link=terms[0],
            languages=_languages(header.get("language")),
            terms=terms,
        )
    return BaseCard(
        licence=licence,
        name=_matching(header.get("license_name"), _LINE),
        link=_matching(header.get("license_link"), _LINK),
        languages=_languages(header.get("language")),
        terms=terms,
    )


def _matching(value: Value | None, pattern: re.Pattern[str]) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) and printable(value) == value else None


def _languages(value: Value | None) -> tuple[str, ...]:
    named = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(dict.fromkeys(one for one in named if isinstance(one, str) and _LANGUAGE.fullmatch(one)))
