"""What the record says of the machine and its libraries."""

from importlib.metadata import version

import pytest

from replaceme_core.engine.results import provenance


def test_a_library_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-library"))
    found = provenance._versions()
    assert found.keys() == {"python", "torch"}
    assert found["torch"] == version("torch")
