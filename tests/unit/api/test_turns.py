"""More requests at once than there are threads for them."""

from concurrent.futures import ThreadPoolExecutor

import anyio.to_thread
from starlette.testclient import TestClient

from api.deps import WRITERS
from tests.fixtures.api.requests import SMALLEST

THREADS = WRITERS + 3
REQUESTS = 4 * THREADS


def test_who_waits_for_the_database_does_not_keep_who_holds_it_from_committing(client: TestClient) -> None:
    """Between the route of a cancellation and its commit the framework takes a thread of the pool once more."""

    async def few_threads() -> None:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS

    assert client.portal is not None
    client.portal.call(few_threads)
    with ThreadPoolExecutor(REQUESTS) as pool:
        replies = list(pool.map(lambda _: client.post("/jobs", json=SMALLEST), range(REQUESTS)))
    assert [reply.status_code for reply in replies] == [202] * REQUESTS
    assert len({reply.headers["location"] for reply in replies}) == REQUESTS
    jobs = [reply.headers["location"] for reply in replies]
    with ThreadPoolExecutor(REQUESTS) as pool:
        replies = list(pool.map(lambda job: client.post(f"{job}/cancel"), jobs))
    assert [reply.status_code for reply in replies] == [200] * REQUESTS
