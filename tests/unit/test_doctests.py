"""The examples in docstrings, of every module that has some."""

import doctest
import importlib

import pytest

from benchmarks.harness.checkout import ROOT

PACKAGES = ("api", "worker", "replaceme_core", "migrations", "benchmarks")
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if "\n    >>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert not result.failed
    assert result.attempted, "doctest finds no examples in functions within functions"


def test_modules_with_examples_are_found() -> None:
    assert {"api", "replaceme_core", "benchmarks"} <= {name.partition(".")[0] for name in WITH_EXAMPLES}
