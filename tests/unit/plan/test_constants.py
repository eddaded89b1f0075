"""Numerics knows tensors only, so it cannot read the table of the defaults: two of its constants are there as well."""

from replaceme_core.engine.numerics import stream
from replaceme_core.request import defaults


def test_constants_are_those_of_the_defaults() -> None:
    assert defaults.LONGEST_ORDINARY == stream.LONGEST_ORDINARY
    assert defaults.LARGEST_WEIGHT == stream.LARGEST_WEIGHT
