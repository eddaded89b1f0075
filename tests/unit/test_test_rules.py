"""Who may import whom in `tests` and `benchmarks`, read from the source text."""

import ast
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness.checkout import ROOT


def imports_of(path: Path) -> Iterator[str]:
    """The dotted names that a file may import: modules, and names in modules, which may be modules themselves."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "imports are absolute"
            assert not node.level, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_in(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def test_no_module_of_tests_is_imported_by_another() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for folder in ("tests", "benchmarks")
        for path in modules_in(folder)
        for name in imports_of(path)
        if name.startswith("tests.") and any(part.startswith(("test_", "conftest")) for part in name.split(".")[1:])
    }
    assert not found, "put what several modules need into tests/fixtures"


def test_benchmarks_import_nothing_from_tests() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules_in("benchmarks")
        for name in imports_of(path)
        if name.partition(".")[0] in ("tests", "pytest")
    }
    assert not found, "put what tests and benchmarks need into benchmarks/harness"
