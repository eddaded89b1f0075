"""Sizes that keep a room readable: lines of a file, files of a folder."""

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
