"""A service with given answers."""

from collections.abc import Iterator

import pytest

from tests.fixtures.cli.stub_service import StubService, stub_service


@pytest.fixture
def service() -> Iterator[StubService]:
    with stub_service() as service:
        yield service


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between repetitions of a request, which are three in any case, and between reads that wait."""
    monkeypatch.setattr("api.client.connection.PAUSES_SECONDS", (0.01, 0.01, 0.01))
    for module in ("client", "connection"):
        monkeypatch.setattr(f"api.client.{module}.POLL_SECONDS", 0.01)
