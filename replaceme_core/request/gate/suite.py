"""Names of tasks by which a model is judged, and the suite of the paper."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from replaceme_core.request.fields import as_tuple


def _different(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("a task is named twice")
    return names


TaskName = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
TaskNames = Annotated[tuple[TaskName, ...], BeforeValidator(as_tuple), AfterValidator(_different), Field(max_length=64)]
PAPER = "replaceme_paper"
PAPER_TASKS: Mapping[str, int | None] = {
    "race": None,
    "winogrande": 5,
    "piqa": None,
    "boolq": None,
    "openbookqa": None,
    "sciq": None,
    "lambada_openai": None,
}
"""With the number of examples in the prompt where it is not that of the task."""


def expanded(names: Sequence[str]) -> dict[str, int | None]:
    """The tasks of `names`, without the name of the suite, each with its number of examples in the prompt.

    >>> list(expanded(["sciq", "replaceme_paper"]))[:3]
    ['sciq', 'race', 'winogrande']
    """
    found: dict[str, int | None] = {}
    for name in names:
        found |= PAPER_TASKS if name == PAPER else {name: None}
    return found
