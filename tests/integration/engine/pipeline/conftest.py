"""Only `test_report.py` looks at pictures."""

import pytest


@pytest.fixture(autouse=True)
def _brief_reports(request: pytest.FixtureRequest) -> None:
    if request.path.name != "test_report.py":
        request.getfixturevalue("brief_reports")
