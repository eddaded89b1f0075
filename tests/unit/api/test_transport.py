"""Behind a proxy, from a page of another origin, and on a database without tables."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from api.main import create_app
from replaceme_core.settings import Settings
from tests.fixtures.api.requests import SMALLEST, assert_problem

ORIGIN = "https://app.example.org"


def client_with(settings: Settings, *, address: str = "10.0.0.7", **changes: object) -> TestClient:
    """A client on another machine, which needs no key here."""
    app = create_app(settings.model_copy(update={"allow_unauthenticated": True, **changes}))
    return TestClient(app, raise_server_exceptions=False, client=(address, 5000))


@pytest.mark.parametrize("path", ["/jobs", "/prune/jobs"])
def test_links_have_the_path_under_which_the_api_is_shown(settings: Settings, path: str) -> None:
    """Whether the proxy removes it or not."""
    with client_with(settings, root_path="/prune") as client:
        for _ in range(2):
            answer = client.post(path, json=SMALLEST)
        assert answer.headers["location"].startswith("/prune/jobs/")
        assert answer.json()["links"]["events"] == f"{answer.headers['location']}/events"
        page = client.get(f"{path}?limit=1")
        assert page.links["next"]["url"].startswith("/prune/jobs?limit=1&cursor=")
        assert client.get(answer.headers["location"]).status_code == 200
        assert_problem(client.get("/prune/none"), status=404, code="not_found")


def test_forwarded_headers_count_from_trusted_addresses_only(settings: Settings) -> None:
    forwarded = {"x-forwarded-prefix": "/outside", "x-forwarded-host": "public.example.org"}
    hosts = ("public.example.org", "testserver")
    with client_with(settings, trusted_proxies=("10.0.0.0/8",), allowed_hosts=hosts) as client:
        answer = client.post("/jobs", json=SMALLEST, headers=forwarded)
        assert answer.headers["location"].startswith("/outside/jobs/")
        page = {"origin": "https://public.example.org", "x-forwarded-host": "public.example.org"}
        assert client.post("/jobs", json=SMALLEST, headers=page).status_code == 202
        bad = {"x-forwarded-host": "other.example.org"}
        assert_problem(client.get("/jobs", headers=bad), status=421, code="misdirected_request")
    with client_with(settings, trusted_proxies=("10.0.0.0/8",), address="192.0.2.1") as client:
        answer = client.post("/jobs", json=SMALLEST, headers=forwarded)
        assert answer.headers["location"].startswith("/jobs/")


def test_pages_of_other_origins_only_by_settings(settings: Settings) -> None:
    asked = {"origin": ORIGIN, "access-control-request-method": "POST"}
    with client_with(settings) as client:
        assert "access-control-allow-origin" not in client.get("/jobs", headers={"origin": ORIGIN}).headers
        assert_problem(client.options("/jobs", headers=asked), status=405, code="method_not_allowed")
        assert client.post("/jobs", json=SMALLEST, headers={"origin": ORIGIN}).status_code == 403
    with client_with(settings, cors_origins=(ORIGIN,)) as client:
        allowed = client.options("/jobs", headers=asked)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
        assert "Idempotency-Key" in allowed.headers["access-control-allow-headers"]
        refused = client.options("/jobs", headers={**asked, "origin": "https://evil.example.org"})
        assert_problem(refused, status=400, code="bad_request")
        answer = client.post("/jobs", json=SMALLEST, headers={"origin": ORIGIN, "sec-fetch-site": "cross-site"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (202, ORIGIN)
        assert "ETag" in answer.headers["access-control-expose-headers"]
        for other in ("https://evil.example.org", "http://app.example.org", "null"):
            headers = client.get("/jobs", headers={"origin": other}).headers
            assert "access-control-allow-origin" not in headers
            assert "Origin" in headers["vary"]
            assert client.post("/jobs", json=SMALLEST, headers={"origin": other}).status_code == 403


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("root_path", "prune"), ("root_path", "/prune/"), ("trusted_proxies", "proxy")),
        *(("cors_origins", "*"), ("cors_origins", "app.example.org"), ("cors_origins", "https://a/b")),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, value: str) -> None:
    with pytest.raises(ValidationError, match="expected"):
        Settings(_env_file=None, **{name: value})  # type: ignore[arg-type]


def test_a_database_without_tables_is_503_with_one_line(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    empty = f"sqlite:///{tmp_path / 'empty.sqlite3'}"
    with client_with(settings, database_url=empty) as client:
        for method, path in (("GET", "/jobs"), ("GET", "/ready"), ("POST", "/jobs")):
            caplog.clear()
            capsys.readouterr()
            response = client.request(method, path, json=SMALLEST if method == "POST" else None)
            problem = assert_problem(response, status=503, code="database_outdated")
            assert "migrations" in str(problem["detail"])
            lines = [record for record in caplog.records if "tables" in record.getMessage()]
            assert len(lines) == 1, (path, lines)
            written = capsys.readouterr().err.splitlines()
            assert all('"event": "request"' in line for line in written), written
