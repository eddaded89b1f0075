"""How many tokens a model reads in a task, about: for the plan and the progress, before any data are here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from replaceme_core.request.gate.suite import expanded


@dataclass(frozen=True, kw_only=True)
class TaskSize:
    """Of a task: its `questions`, the `choices` of each that are read one by one, and the `tokens` of one reading."""

    questions: int
    choices: int
    tokens: int


SIZES: Mapping[str, TaskSize] = {
    "race": TaskSize(questions=1045, choices=4, tokens=450),
    "winogrande": TaskSize(questions=1267, choices=2, tokens=30),
    "piqa": TaskSize(questions=1838, choices=2, tokens=40),
    "boolq": TaskSize(questions=3270, choices=2, tokens=150),
    "openbookqa": TaskSize(questions=500, choices=4, tokens=20),
    "sciq": TaskSize(questions=1000, choices=4, tokens=115),
    "lambada_openai": TaskSize(questions=5153, choices=1, tokens=90),
}
OTHER = TaskSize(questions=2000, choices=4, tokens=60)
"""A task whose size is not known here."""


def task_tokens(names: Sequence[str], *, limit: int | None, few_shot: int | None) -> int:
    """The tokens that one model reads in these tasks. An example in the prompt is as long as a question.

    >>> task_tokens(["piqa"], limit=10, few_shot=None)
    800
    """
    total = 0
    for name, usual in expanded(names).items():
        size = SIZES.get(name, OTHER)
        shots = (usual or 0) if few_shot is None else few_shot
        questions = size.questions if limit is None else min(limit, size.questions)
        total += questions * size.choices * size.tokens * (1 + shots)
    return total
