"""Nothing of one owner is visible to another, or can be changed by it, through any operation of the service.

The operations are those of the OpenAPI document, not a list kept here: a new one is part of the test from its first
day. Every parameter of a path is given what the first owner has.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine, event
from starlette.testclient import TestClient

from api.main import create_app
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import Scope
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import ApiKeyRow, Base
from replaceme_core.ledger.webhooks import message_id
from replaceme_core.settings import Settings
from tests.fixtures.api.keys import hold_key
from tests.fixtures.api.requests import SMALLEST, fields
from tests.fixtures.api.service import settings_in
from tests.fixtures.jobs.ledger import Ledger
from tests.fixtures.servers.database import listening

PLANTED = "planted-of-alice"
RECEIVER = f"https://hooks.example.com/{PLANTED}"
EVERYTHING = [str(scope) for scope in Scope if scope is not Scope.ADMIN]
OF_ALL = ("event_totals", "stage_totals")
"""Tables that add up what all owners do."""
BODIES = {
    "/jobs": SMALLEST,
    "/credentials/{name}": {"token": "hf_x"},
    "/keys": {"name": "k"},
    "/owners/{owner}": {"output_namespaces": None},
    "/webhooks": {"url": "https://hooks.example.com/of-bob"},
    "/webhooks/{webhook_id}": {"enabled": False},
}
"""Bodies that would be accepted, so that no operation is refused for its body alone; elsewhere an empty object."""


class Two:
    """Two owners of one service. Alice has jobs in several states, a credential, and webhooks with deliveries."""

    def __init__(self, client: TestClient, settings: Settings, database: Database) -> None:
        self.database = database
        self.client = client
        self.alice = hold_key(client, settings, owner="alice", scopes=EVERYTHING)
        self.bob = hold_key(client, settings, owner="bob", scopes=EVERYTHING)
        standing = self.alice.post("/webhooks", json={"url": RECEIVER, "events": ["created", "succeeded"]}).json()
        body = {**SMALLEST, "labels": {"secret": PLANTED}, "output": f"local/{PLANTED}"}
        with_webhook = {**body, "webhook": {"url": RECEIVER, "events": ["created"]}}
        submitted = [self.alice.post("/jobs", json=with_webhook).json()]
        submitted += [self.alice.post("/jobs", json=body).json() for _ in range(len(JobStatus) - 1)]
        self.jobs = [job["id"] for job in submitted]
        self.webhooks = [standing["id"], submitted[0]["webhook"]["id"]]
        self.secrets = [standing["secret"], submitted[0]["webhook"]["secret"]]
        ledger = Ledger(database)
        _, succeeded, failed, cancelled, running = self.jobs
        ledger.succeed(succeeded)
        ledger.fail(failed, message=PLANTED)
        ledger.finish_cancelled(ledger.claim(cancelled))
        ledger.claim(running)
        assert self.alice.put(f"/credentials/{PLANTED}", json={"token": "hf_x"}).status_code == 200
        self.deliveries = [
            delivery["id"]
            for webhook_id in self.webhooks
            for delivery in self.alice.get(f"/webhooks/{webhook_id}/deliveries").json()["items"]
        ]
        assert len(self.deliveries) > len(JobStatus), "messages of both webhooks"

    def values(self, parameter: str) -> list[str]:
        """What of Alice's may be at this place of a path."""
        return {
            "name": [PLANTED],
            "owner": ["alice"],
            "key_id": [self.alice.key_id],
            "webhook_id": self.webhooks,
            "delivery_id": self.deliveries,
            "job_id": self.jobs,
        }[parameter]

    def rows(self) -> str:
        """Everything of Alice that is stored, apart from when her key was last used and the order of all events.

        A caller who reads a stream of events gives all events that are new their number in that order.
        """
        found = []
        with self.database.session(read_only=True) as session:
            for name, table in sorted(Base.metadata.tables.items()):
                if name in OF_ALL:
                    continue
                for row in session.execute(table.select()).mappings():
                    values = {
                        key: str(value) for key, value in row.items() if key not in ("last_used_at", "position", "last")
                    }
                    if values.get("owner", "alice") == "alice" and values.get("job_id", self.jobs[0]) in self.jobs:
                        found.append(f"{name} {json.dumps(values, sort_keys=True)}")
        return "\n".join(sorted(found))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[Two]:
    settings = settings_in(tmp_path_factory.mktemp("two"), sqlite_template)
    database = Database(settings.resolved_database_url)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield Two(client, settings, database)
    database.close()


def operations(client: TestClient) -> list[tuple[str, str]]:
    """Method and path of each operation that is described."""
    paths = client.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def requests_of(two: Two, method: str, path: str, *, query: str = "") -> Iterator[tuple[str, str, object]]:
    """The requests of an operation: one for each thing of Alice's that fits its path."""
    first, *others = re.findall(r"{(\w+)}", path) or ["name"]
    for value in two.values(first):
        there = path.format(**{first: value, **{name: two.values(name)[0] for name in others}})
        yield method, there + query, body_of(method, path)


def body_of(method: str, path: str) -> object:
    return BODIES.get(path, {}) if method in ("POST", "PUT", "PATCH") else None


def send_as_bob(two: Two, method: str, path: str, body: object) -> tuple[int, str]:
    """Status and everything that can be read of a response."""
    answer = two.bob.request(method, path, **({} if body is None else {"json": body}))
    if method == "PUT" and path.startswith("/credentials/"):  # Bob may use the same name; then it is his
        two.bob.delete(path)
    if method == "POST" and path.partition("?")[0] == "/webhooks" and answer.status_code == 201:
        two.bob.delete(f"/webhooks/{answer.json()['id']}")  # there may be a hundred
    return answer.status_code, f"{dict(answer.headers)} {answer.text}"


QUERIES = ("", f"?label=secret={PLANTED}", "?owner=alice", "?limit=200")


def test_every_operation_by_another_owner(two: Two) -> None:
    before, seen = two.rows(), set()
    of_alice = {PLANTED, two.alice.key_id, two.alice.text, "alice"}
    assert PLANTED in before
    found = operations(two.client)
    assert len(found) >= 19
    for method, path in found:
        for request in (one for query in QUERIES for one in requests_of(two, method, path, query=query)):
            status, text = send_as_bob(two, *request)
            assert status < 500, (request, text)
            echoed = request[1]  # an error may name what was asked for, which Bob knew
            for thing in {*of_alice, *two.jobs, *two.webhooks, *two.deliveries, *two.secrets}:
                assert thing in echoed or thing not in text, (request, status, text)
            if ("{job_id}" in path or "{webhook_id}" in path) and "?" not in request[1]:
                assert status == 404, (request, status)
            seen.add((method, path))
    assert seen == set(found)
    assert two.rows() == before


UNKNOWN = {
    "job_id": str(uuid4()),
    "webhook_id": str(uuid4()),
    "delivery_id": message_id(str(uuid4()), 1),
    "name": "nothing",
}
"""Of the form of what Alice has."""


def test_what_is_alices_takes_the_path_of_what_never_was(two: Two) -> None:
    """The same statements, and no row of hers is read: so the time of an answer tells nothing either."""
    found = [*operations(two.client), ("GET", "/ui/jobs/{job_id}"), ("GET", "/ui/jobs/{job_id}/report.json")]
    compared = 0
    for method, path in found:
        names = re.findall(r"{(\w+)}", path)
        if not names or "{key_id}" in path or "{owner}" in path:
            continue
        there = path.format(**{name: UNKNOWN[name] for name in names})
        unknown = _path_taken(two, method, there, body_of(method, path))
        for request in requests_of(two, method, path):
            assert _path_taken(two, *request) == unknown, request
            compared += 1
            if "{job_id}" in path and method == "GET":  # as one who follows it, and has seen it before
                headers = {"if-none-match": '"x"', "accept": "text/event-stream"}
                paths = (request[1], there)
                taken = [_path_taken(two, method, one, None, headers=headers) for one in paths]
                assert taken[0] == taken[1], request
    assert compared > 60


def _path_taken(
    two: Two, method: str, path: str, body: object, *, headers: dict[str, str] | None = None
) -> tuple[int, list[str], int]:
    """Status, statements, and how many rows were read. Those about keys come when the process looks them up again."""
    sent: list[str] = []
    read: list[object] = []

    def note_statement(statement: str) -> None:
        if ApiKeyRow.__tablename__ not in statement and not statement.startswith(("PRAGMA", "BEGIN")):
            sent.append(statement)

    def note_row(row: object, _: object) -> None:
        if not isinstance(row, ApiKeyRow):
            read.append(row)

    event.listen(Base, "load", note_row, propagate=True)
    try:
        with listening(Engine, note_statement):
            options = {} if body is None else {"json": body}
            answer = two.bob.request(method, path, headers=headers or {}, **options)
    finally:
        event.remove(Base, "load", note_row)
    if method == "PUT" and path.startswith("/credentials/"):
        two.bob.delete(path)
    return answer.status_code, sent, len(read)


def test_an_idempotency_key_of_another_owner_finds_nothing(two: Two) -> None:
    headers = {"idempotency-key": "the-same"}
    theirs = two.alice.post("/jobs", json=SMALLEST, headers=headers).json()["id"]
    two.jobs.append(theirs)
    ours = two.bob.post("/jobs", json=SMALLEST, headers=headers)
    assert ours.status_code == 202
    assert ours.json()["id"] != theirs


def test_what_another_owner_has_can_not_be_named_in_a_body(two: Two) -> None:
    signed = {**SMALLEST, "webhook": {"url": RECEIVER, "signed_by": two.webhooks[0]}}
    assert fields(two.bob.post("/jobs", json=signed)).keys() == {"webhook.signed_by"}
    assert fields(two.bob.post("/jobs", json={**SMALLEST, "credential": PLANTED})) == {"credential": PLANTED}


def test_what_alice_does_is_noticed(two: Two) -> None:
    """The comparisons above can fail: by Alice herself the same operations read and change."""
    for path in ("/jobs", "/credentials", f"/webhooks/{two.webhooks[0]}"):
        assert PLANTED in two.alice.get(path).text
    before = two.rows()
    assert two.alice.patch(f"/webhooks/{two.webhooks[1]}", json={"enabled": False}).status_code == 200
    changed = two.rows()
    assert two.alice.post(f"/jobs/{two.jobs[0]}/cancel").status_code == 200
    assert len({before, changed, two.rows()}) == 3
