"""What a person must know before using a result, although the run succeeded."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from replaceme_core.engine.evaluation.answers import AnswerPair
from replaceme_core.engine.evaluation.compare import TextResult

MANY = 0.4
"""Share of the answers from which on a fault of them is a warning."""


@dataclass(frozen=True, kw_only=True)
class ResultWarning:
    """`code` is for programs, `message` one sentence for a person."""

    code: str
    message: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


FAR_WORSE = 2.0
"""Times the ratio of perplexities on the first text from which on that of another text is a warning."""


def warnings_of(
    answers: Sequence[AnswerPair],
    texts: Sequence[TextResult],
    *,
    irregular: Sequence[str] = (),
    left_out: Sequence[str] = (),
    unmeasured: Sequence[str] = (),
) -> list[ResultWarning]:
    """Faults of the pruned model that the source model does not have, and what a longer time might have made better.

    `texts` begins with the one that is like the calibration. `irregular` are lists of the config that converters
    compute otherwise. `left_out` are steps that the time budget did not allow. `unmeasured` are
    sentences on what failed in the evaluation.
    """
    failed = [ResultWarning(code="not_measured", message=message) for message in dict.fromkeys(unmeasured)]
    return [*failed, *_of_answers(answers), *_of_texts(texts), *_of_lists(irregular), *_of_budget(left_out)]


def _of_budget(left_out: Sequence[str]) -> list[ResultWarning]:
    if not left_out:
        return []
    message = (
        f"the time budget did not allow {' and '.join(left_out)}, which may give a better model: raise or leave out "
        "method.time_budget_seconds (--time-budget)"
    )
    return [ResultWarning(code="time_budget", message=message)]


def _of_lists(irregular: Sequence[str]) -> list[ResultWarning]:
    if not irregular:
        return []
    message = (
        f"the kinds of its layers ({', '.join(irregular)} in config.json) follow no fixed step; converters to GGUF, "
        "MLX and ONNX that compute them from the number of the layer give a wrong model: use compute.pattern_safe for "
        "these"
    )
    return [ResultWarning(code="irregular_pattern", message=message)]


def _of_texts(texts: Sequence[TextResult]) -> list[ResultWarning]:
    """Whether the result is far worse on some text than on that of its calibration."""
    if not texts:
        return []
    home, *others = texts
    worst = max(others, key=lambda one: one.ratio, default=home)
    if worst.ratio <= FAR_WORSE * home.ratio:
        return []
    message = (
        f"on {worst.name} text the perplexity is {worst.ratio:.1f} times that of the source model, on {home.name} "
        f"{home.ratio:.1f} times: calibrate on more kinds of text"
    )
    return [ResultWarning(code="worse_elsewhere", message=message)]


def _of_answers(answers: Sequence[AnswerPair]) -> list[ResultWarning]:
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
