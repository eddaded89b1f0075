"""Pictures take half the time of a run of a tiny model; `test_report.py` draws them."""

import pytest


@pytest.fixture(autouse=True)
def _without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.path.name != "test_report.py":
        for module in ("page", "card"):
            monkeypatch.setattr(f"replaceme_core.report.{module}.can_draw", lambda: False)
