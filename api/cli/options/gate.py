"""What a result must be worth, on the command line."""

import re
from collections.abc import Sequence
from typing import Annotated

import typer

_CRITERION = re.compile(r"(?P<name>tasks\.[\w.-]+|\w+) *(?P<sign><=|>=) *(?P<limit>\d+(?:\.\d*)?(?:e-?\d+)?|\.\d+)")
_BOUNDS = {"<=": "max", ">=": "min"}

Gate = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME<=LIMIT",
        help="What the result must be worth, else it is rejected (exit code 4): perplexity_ratio<=1.6, "
        "worst_perplexity_ratio<=2, divergence<=0.5, agreement>=0.7, size_ratio<=0.8, "
        "accuracy_kept>=0.9 or tasks.NAME>=0.95. Repeatable.",
    ),
]


def parse_gate(criteria: Sequence[str] | None) -> dict[str, object] | None:
    """The field `gate` of a specification; `None` without criteria.

    >>> parse_gate(["perplexity_ratio<=1.6", "agreement >= 0.7", "agreement<=0.9"])
    {'perplexity_ratio': {'max': 1.6}, 'agreement': {'min': 0.7, 'max': 0.9}}
    """
    gate: dict[str, dict[str, float]] = {}
    tasks: dict[str, dict[str, float]] = {}
    for text in criteria or ():
        found = _CRITERION.fullmatch(text.strip())
        if found is None:
            raise typer.BadParameter(
                f"expected a criterion such as perplexity_ratio<=1.6, got {text!r}", param_hint="--gate"
            )
        _, is_task, task = found["name"].partition("tasks.")
        if is_task and found["sign"] == "<=":
            raise typer.BadParameter(f"of a task the least share is given: {found['name']}>=0.95", param_hint="--gate")
        limits = tasks.setdefault(task, {}) if is_task else gate.setdefault(found["name"], {})
        bound = "min_kept" if is_task else _BOUNDS[found["sign"]]
        if bound in limits:
            raise typer.BadParameter(f"{found['name']} has two limits with {found['sign']}", param_hint="--gate")
        limits[bound] = float(found["limit"])
    return {**gate, **({"tasks": tasks} if tasks else {})} or None
