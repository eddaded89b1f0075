"""Numbers of things, as all messages, tables and pages write them. Imports the standard library only."""

import re

_PLURAL = re.compile(r"^(\w{2,})s\b")


def counted(number: float, things: str, *, shown: str = "") -> str:
    """The number with its noun, which is given in the plural. `shown` is the number as text, where it has another form.

    >>> counted(1, "blocks"), counted(1200, "blocks"), counted(1, "tokens/s"), counted(0.5, "days")
    ('1 block', '1,200 blocks', '1 token/s', '0.5 days')
    """
    noun = _PLURAL.sub(r"\1", things) if number == 1 else things
    return f"{shown or format(number, ',' if isinstance(number, int) else ',g')} {noun}"
