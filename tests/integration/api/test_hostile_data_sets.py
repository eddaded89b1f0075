"""While a service reads cards that strangers wrote, it answers others, and it stops at a signal."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from benchmarks.harness.processes import WAIT_SECONDS, wait_until
from tests.fixtures.hostile.cards import CARDS, FILES
from tests.fixtures.service.serve import HEALTH_SECONDS, Serve, add_model, health_meanwhile, served

MODEL = "acme/tiny"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Serve]:
    hub = tmp_path / "data" / "hub"
    add_model(hub)
    for number, card in enumerate(CARDS.values()):
        folder = hub / "datasets" / "stranger" / f"data{number}"
        for name in FILES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")
        (folder / "README.md").write_text(card)
    with served(tmp_path) as serve:
        yield serve


def submit(client: httpx2.Client, number: int) -> httpx2.Response:
    calibration = {"dataset": f"stranger/data{number}"}
    return client.post("/jobs", json={"model": MODEL, "ratio": 0.25, "calibration": calibration})


def test_all_of_them_at_once(service: Serve) -> None:
    with (
        httpx2.Client(base_url=service.url, timeout=WAIT_SECONDS) as client,
        ThreadPoolExecutor(8) as pool,
        health_meanwhile(service.url, service.child("api.http.server")) as took,
    ):
        responses = list(pool.map(lambda number: submit(client, number), range(len(CARDS))))
    assert {response.status_code for response in responses} <= {202, 422}
    took.sort()
    assert took[len(took) // 2] < HEALTH_SECONDS, took[-10:]


def test_it_stops_in_the_midst_of_them(service: Serve) -> None:
    with ThreadPoolExecutor(8) as pool, httpx2.Client(base_url=service.url, timeout=WAIT_SECONDS) as client:
        for number in range(len(CARDS)):
            pool.submit(submit, client, number)
        api = service.child("api.http.server")
        wait_until(lambda: [one for one in api.net_connections("tcp") if one.raddr], what="the first of them")
        assert service.stop() == 0
