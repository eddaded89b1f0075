"""Open streams and held answers on one API process: its memory stays, and it answers others meanwhile."""

import asyncio
import json
from functools import partial
from urllib.parse import urlsplit

import psutil

from benchmarks.connection import Connection
from benchmarks.harness.processes import wait_until
from benchmarks.harness.site import Site
from replaceme_core.ledger import reading
from tests.fixtures.jobs.ledger import Ledger

STREAMS = 500
WAITING, REQUESTS = 100, 100
ROUNDS = 4
MOST_GROWTH_BYTES = 12 * 2**20
OWNER = "anonymous"


class Stream:
    """A client of a stream that counts the events it has received."""

    def __init__(self, url: str, path: str) -> None:
        self._host = urlsplit(url).netloc
        self._path = path
        self.ids: list[int] = []
        self.opened = asyncio.Event()

    async def read(self) -> None:
        host, _, port = self._host.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"GET {self._path} HTTP/1.1\r\nhost: {self._host}\r\naccept: text/event-stream\r\n\r\n"
        writer.write(head.encode())
        try:
            async for line in reader:
                name, _, value = line.decode().strip().partition(": ")
                if name == "retry":
                    self.opened.set()
                elif name == "id":
                    self.ids.append(int(value))
        finally:
            writer.transport.abort()


def submit(site: Site) -> str:
    return site.add(enqueue=False, owner=OWNER)


def test_five_hundred_streams_cost_no_memory(server_site: Site) -> None:
    api = server_site.start_api()
    assert api.url is not None
    process, ledger, url = psutil.Process(api.pid), Ledger(server_site.database), api.url
    jobs = [submit(server_site) for _ in range(STREAMS // 2)]

    async def test() -> None:
        streams = [Stream(url, f"/jobs/{job_id}/events?after=1") for job_id in jobs]
        streams += [Stream(url, "/events") for _ in range(STREAMS // 2)]
        tasks = [asyncio.create_task(stream.read()) for stream in streams]
        await asyncio.gather(*(stream.opened.wait() for stream in streams))
        sizes: list[int] = []
        for number in range(1, ROUNDS + 1):
            await asyncio.to_thread(lambda: [submit(server_site) for _ in range(40)])
            while not all(len(stream.ids) >= 40 * number for stream in streams[STREAMS // 2 :]):
                await asyncio.sleep(0.1)
            sizes.append(process.memory_info().rss)
        assert sizes[-1] - sizes[0] < MOST_GROWTH_BYTES, sizes
        await asyncio.to_thread(lambda: [ledger.cancel(job_id) for job_id in jobs])
        await asyncio.wait_for(asyncio.gather(*tasks[: STREAMS // 2]), timeout=60)  # they end with their jobs
        assert {tuple(stream.ids) for stream in streams[: STREAMS // 2]} == {(2, 3)}
        assert len({tuple(stream.ids[: 40 * ROUNDS]) for stream in streams[STREAMS // 2 :]}) == 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(test())


def test_held_answers_do_not_slow_others(server_site: Site) -> None:
    api = server_site.start_api()
    assert api.url is not None
    process, ledger, url = psutil.Process(api.pid), Ledger(server_site.database), api.url
    body = json.dumps({"model": "acme/tiny", "ratio": 0.25, "calibration": "builtin:pydoc-topics"}).encode()

    async def health() -> float:
        """Seconds of processor time of the API in each of some requests: those of the clock depend on the machine."""
        connection, before = Connection(url), process.cpu_times()
        for _ in range(REQUESTS):
            assert (await connection.ask("GET", "/health")).status == 200
            await asyncio.sleep(0.02)
        connection.close()
        after = process.cpu_times()
        return (after.user + after.system - before.user - before.system) / REQUESTS

    def submitted() -> list[str]:
        with server_site.database.session(read_only=True) as session:
            return [one.job().id for one in reading.page(session, owner=OWNER, limit=WAITING).items]

    async def test() -> None:
        alone = await health()
        connections = [Connection(url) for _ in range(WAITING)]
        ask = partial(Connection.ask, method="POST", path="/jobs", body=body, headers={"Prefer": "wait=60"})
        held = [asyncio.create_task(ask(connection)) for connection in connections]
        await asyncio.to_thread(wait_until, lambda: len(submitted()) == WAITING, what="all jobs")
        meanwhile = await health()
        assert not any(task.done() for task in held)
        await asyncio.to_thread(lambda: [ledger.cancel(job_id) for job_id in submitted()])
        answers = await asyncio.gather(*held)
        assert {(answer.status, json.loads(answer.body)["status"]) for answer in answers} == {(202, "cancelled")}
        assert meanwhile < 5 * alone + 0.02, (meanwhile, alone)
        for connection in connections:
            connection.close()

    asyncio.run(test())
