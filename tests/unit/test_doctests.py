"""The examples in docstrings, of every module that has some."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

from benchmarks.harness.checkout import ROOT

PACKAGES = ("api", "worker", "replaceme_core", "migrations", "benchmarks")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def examples_in(path: Path) -> int:
    """How many examples the docstrings of a file hold. The file is not imported."""
    text = path.read_text(encoding="utf-8")
    if ">>>" not in text:
        return 0
    docstrings = (ast.get_docstring(node) for node in ast.walk(ast.parse(text)) if isinstance(node, DOCUMENTED))
    return sum(len(doctest.DocTestParser().get_examples(text)) for text in docstrings if text)


WITH_EXAMPLES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): count
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if (count := examples_in(path))
}


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert not result.failed
    assert result.attempted == WITH_EXAMPLES[name], "doctest finds no examples in functions within functions"


def test_modules_with_examples_are_found() -> None:
    assert {"api", "replaceme_core", "benchmarks"} <= {name.partition(".")[0] for name in WITH_EXAMPLES}
