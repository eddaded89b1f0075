"""Keys of caches follow from all code that decides a number."""

import sys
from pathlib import Path

import pytest

import replaceme_core
import replaceme_core.engine.pipeline  # imports every module of the method
from replaceme_core.engine.activations import cache


def test_the_digest_covers_every_module_that_the_pipeline_imports() -> None:
    names = [name for name in sys.modules if name.startswith("replaceme_core.")]
    imported = {Path(str(sys.modules[name].__file__)).resolve() for name in names}
    assert len(imported) > 50
    assert imported <= {path.resolve() for path in cache.code_files()}


def test_a_module_in_a_package_within_a_package_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nested = tmp_path / "methods" / "new" / "solve.py"
    nested.parent.mkdir(parents=True)
    nested.write_text("RIDGE = 1")
    monkeypatch.setattr(replaceme_core, "__path__", [str(tmp_path)])
    before = cache.code_digest()
    nested.write_text("RIDGE = 2")
    assert cache.code_digest() != before


def test_the_name_of_a_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("")
    monkeypatch.setattr(replaceme_core, "__path__", [str(tmp_path)])
    before = cache.code_digest()
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert cache.code_digest() != before
