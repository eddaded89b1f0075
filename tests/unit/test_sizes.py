"""Sizes that keep a room readable, lines of a file and files of a folder; and who may import whom in tests."""

import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness.checkout import ROOT

PRODUCT = ("api", "worker", "replaceme_core", "migrations")
PACKAGES = (*PRODUCT, "benchmarks", "tests")
MOST_LINES, MOST_FILES = 700, 15


def files_of(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def test_files_are_short() -> None:
    lines = {str(path.relative_to(ROOT)): path.read_text("utf-8").count("\n") for path in files_of(*PACKAGES)}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def test_folders_hold_few_files() -> None:
    counts: dict[str, int] = {}
    for path in files_of(*PRODUCT):
        if path.name != "__init__.py":
            folder = str(path.parent.relative_to(ROOT))
            counts[folder] = counts.get(folder, 0) + 1
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_packages_import_nothing_by_themselves() -> None:
    """An import of a module imports its package first, and no import contract sees that."""
    found = [path for path in files_of(*PACKAGES) if path.name == "__init__.py"]
    assert len(found) > len(PACKAGES)
    assert [str(path.relative_to(ROOT)) for path in found if path.stat().st_size] == []


IMPORT = re.compile(r"^ *(?:from ([\w.]+) )?import (\([^)]*\)|.*)", re.MULTILINE)
"""Of a whole file in a tenth of the time that its syntax tree takes."""


def imports_of(path: Path) -> Iterator[str]:
    """The dotted names that a file may import: modules, and names in modules, which may be modules themselves."""
    for module, names in IMPORT.findall(path.read_text(encoding="utf-8")):
        assert not module.startswith("."), "imports are absolute"
        yield module
        yield from (f"{module}.{name}".removeprefix(".") for name in re.findall(r"[\w.]+", names))


def test_no_module_of_tests_is_imported_by_another() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files_of("tests", "benchmarks")
        for name in imports_of(path)
        if name.startswith("tests.") and any(part.startswith(("test_", "conftest")) for part in name.split(".")[1:])
    }
    assert not found, "put what several modules need into tests/fixtures"


def test_benchmarks_import_nothing_from_tests() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files_of("benchmarks")
        for name in imports_of(path)
        if name.partition(".")[0] in ("tests", "pytest")
    }
    assert not found, "put what tests and benchmarks need into benchmarks/harness"
