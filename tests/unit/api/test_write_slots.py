"""More concurrent requests than threads."""

from concurrent.futures import ThreadPoolExecutor

import anyio.to_thread
from starlette.testclient import TestClient

from api.deps import WRITE_SLOTS
from tests.fixtures.api.requests import SMALLEST

THREADS = WRITE_SLOTS + 3
REQUESTS = 4 * THREADS


def test_waiting_requests_do_not_block_the_commit_of_another(client: TestClient) -> None:
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
