"""A gate in words, as it is typed on the command line and in the form of the dashboard."""

import re
from collections.abc import Iterable

from replaceme_core.request.gate.spec import OF_TASKS

_CRITERION = re.compile(r"(?P<name>tasks\.[\w.-]+|\w+) *(?P<sign><=|>=) *(?P<limit>\d+(?:\.\d*)?(?:e-?\d+)?|\.\d+)")
_BOUNDS = {"<=": "max", ">=": "min"}


def read_criteria(criteria: Iterable[str]) -> dict[str, object]:
    """The field `gate` of a specification; empty without criteria. Names and limits are not checked.

    Raises `ValueError`, whose text is for people, where one cannot be read.

    >>> read_criteria(["perplexity_ratio<=1.6", "agreement >= 0.7", "agreement<=0.9"])
    {'perplexity_ratio': {'max': 1.6}, 'agreement': {'min': 0.7, 'max': 0.9}}
    """
    gate: dict[str, dict[str, float]] = {}
    tasks: dict[str, dict[str, float]] = {}
    for text in criteria:
        found = _CRITERION.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"expected a criterion such as perplexity_ratio<=1.6, got {text!r}")
        _, is_task, task = found["name"].partition(OF_TASKS)
        if is_task and found["sign"] == "<=":
            raise ValueError(f"of a task the least share is given: {found['name']}>=0.95")
        limits = tasks.setdefault(task, {}) if is_task else gate.setdefault(found["name"], {})
        bound = "min_kept" if is_task else _BOUNDS[found["sign"]]
        if bound in limits:
            raise ValueError(f"{found['name']} has two limits with {found['sign']}")
        limits[bound] = float(found["limit"])
    return {**gate, **({"tasks": tasks} if tasks else {})}
