"""Words for people: numbers with their nouns, and text of strangers made safe for a terminal, a log or Markdown.

Names, licences, answers of models and errors of libraries come from files that anybody may have written. Knows the
standard library only.
"""

import re

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
