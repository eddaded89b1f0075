"""How the card calls things: the model, the original, the texts; and text of strangers, made safe for Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from replaceme_core.calibration_spec import SELF_GENERATED
from replaceme_core.fields import BUILTIN_PREFIX, FILE_PREFIX
from replaceme_core.results.outcome import RunOutcome

_SPECIAL = "\\|`*_<>[]{}#!&~$"


@dataclass(frozen=True, kw_only=True)
class Names:
    """`title` of the card, `base` in its first sentence, `short` in others, `place` to load this model from.

    `repository` and `revision` are of the original, `None` for a directory that only its owner has. A repository in a
    directory that acts as the Hub has its name, but nobody else can load it by that.
    """

    title: str
    base: str
    short: str
    place: str
    repository: str | None
    revision: str | None

    @classmethod
    def of(cls, outcome: RunOutcome) -> Self:
        model, hub = outcome.spec.model, outcome.provenance.hub
        short = model.repo_id.split("/")[-1]
        blocks = len(outcome.removed) + len(outcome.kept)
        known = hub is not None and model.revision is not None
        link = f"[{model.repo_id}]({hub}/{model.repo_id}/tree/{model.revision})"
        return cls(
            title=f"{safe(short)}, {len(outcome.kept)} of {blocks} layers",
            base=link if known else f"`{model.repo_id if model.revision else short}`",
            short=f"`{short}`",
            place=(hub and outcome.spec.output.repo_id) or "path/to/this/directory",
            repository=model.repo_id if known else None,
            revision=model.revision if known else None,
        )

    def text(self, name: str) -> str:
        """A text that calibrates or measures."""
        if name == SELF_GENERATED:
            return "text that the original model wrote itself"
        if name.startswith(BUILTIN_PREFIX):
            return f"`{name.removeprefix(BUILTIN_PREFIX)}`, a text that comes with the tool"
        if name.startswith(FILE_PREFIX):
            return f"the file {safe(name.removeprefix(FILE_PREFIX))}"
        return f"`{name}`"


def safe(text: str) -> str:
    """`text` on one line, with nothing that Markdown would read as markup.

    >>> safe("a | b\\n<br>")
    'a \\\\| b \\\\<br\\\\>'
    """
    return "".join(f"\\{letter}" if letter in _SPECIAL else letter for letter in " ".join(text.split()))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Of Markdown; all columns but the first are aligned to the right."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, tuple(rule), *rows))
