"""One criterion of a gate that was judged, and what a missed one says of the depth of a cut."""

from collections.abc import Mapping

from replaceme_core.request.fields import Frozen

_UNITS: Mapping[str, str] = {"divergence": "nats"}
_RISES = ("perplexity_ratio", "worst_perplexity_ratio", "divergence")
"""What grows with every block that is removed; the other criteria fall."""


class CriterionResult(Frozen):
    """One criterion: its measured value, its limits, and whether the value is within them."""

    name: str
    value: float
    min: float | None
    max: float | None
    passed: bool

    @property
    def unit(self) -> str:
        return unit_of(self.name)

    @property
    def is_too_deep(self) -> bool:
        """Whether it is missed in such a way that removing fewer blocks may help.

        A result that is still too large, or that is better than wanted, asks for more blocks instead.
        """
        if self.name in _RISES:
            return self.max is not None and self.value > self.max
        return self.min is not None and self.value < self.min

    def __str__(self) -> str:
        return f"{self.name} is {self.value:.6g}, {self.limits} is wanted"

    @property
    def limits(self) -> str:
        return limits_in_words(self.min, self.max)


def limits_in_words(least: float | None, most: float | None) -> str:
    """
    >>> limits_in_words(None, 1.6), limits_in_words(0.5, 0.9)
    ('at most 1.6', 'at least 0.5 and at most 0.9')
    """
    given = (("at least", least), ("at most", most))
    return " and ".join(f"{words} {limit:.6g}" for words, limit in given if limit is not None)


def unit_of(name: str) -> str:
    """That of the values of a criterion; most are ratios."""
    return _UNITS.get(name, "ratio")
