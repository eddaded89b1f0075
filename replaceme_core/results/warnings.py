"""What a person must know before using a result, although the run succeeded."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from replaceme_core.evaluation.answers import AnswerPair

MANY = 0.4
"""Share of the answers from which on a fault of them is a warning."""


@dataclass(frozen=True, kw_only=True)
class ResultWarning:
    """`code` is for programs, `message` one sentence for a person."""

    code: str
    message: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def warnings_of(answers: Sequence[AnswerPair]) -> list[ResultWarning]:
    """Faults of the pruned model's answers that the source model's do not have."""
    count = len(answers)
    if not count:
        return []
    found = []
    looping, looped = sum(one.after_loops for one in answers), sum(one.before_loops for one in answers)
    if looping > looped and looping / count >= MANY:
        message = f"{looping} of {count} answers of the pruned model repeat themselves; of the source model {looped}"
        found.append(ResultWarning(code="answers_loop", message=message))
    empty, was_empty = sum(not one.after for one in answers), sum(not one.before for one in answers)
    if empty > was_empty and empty / count >= MANY:
        message = f"{empty} of {count} answers of the pruned model are empty; of the source model {was_empty}"
        found.append(ResultWarning(code="answers_empty", message=message))
    same, were_same = _most_alike([one.after for one in answers]), _most_alike([one.before for one in answers])
    if same > max(were_same, 1) and same / count >= MANY:
        message = f"{same} of {count} different prompts get the same answer from the pruned model"
        found.append(ResultWarning(code="answers_same", message=message))
    return found


def _most_alike(texts: Sequence[str]) -> int:
    """How many of `texts` are equal to the most frequent one; empty ones do not count."""
    return max((texts.count(text) for text in texts if text), default=0)
