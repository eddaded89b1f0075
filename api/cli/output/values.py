"""Values of responses and reports, of which only the JSON is known."""

from collections.abc import Mapping


def number(value: object) -> float | None:
    """A number; `None` for everything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def shown(value: object, digits: int) -> str:
    """A number with so many decimals; "-" for what is none.

    >>> shown(134515008, 0), shown(None, 2)
    ('134,515,008', '-')
    """
    found = number(value)
    return "-" if found is None else f"{found:,.{digits}f}"


def inside(value: object, *path: str) -> object:
    """What is at a path of names in objects; `None` if there is nothing.

    >>> inside({"model": {"repo_id": "org/name"}}, "model", "repo_id")
    'org/name'
    """
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
