"""Hosts that the service answers to, pages that may use it, and proxies."""

import re

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from api.main import create_app
from replaceme_core.ledger import reading
from replaceme_core.settings import Settings
from tests.fixtures.api.requests import SMALLEST, assert_problem, submit
from tests.fixtures.api.service import METRICS_KEY

HERE = "http://127.0.0.1:8000"


@pytest.fixture
def job_id(client: TestClient) -> str:
    return submit(client)


def client_with(settings: Settings, *, address: str = "10.0.0.7", **changes: object) -> TestClient:
    """A client on another machine, which needs no key here."""
    app = create_app(settings.model_copy(update={"allow_unauthenticated": True, **changes}))
    return TestClient(app, raise_server_exceptions=False, client=(address, 5000))


def test_hosts_that_are_answered(settings: Settings) -> None:
    hosts = ["LOCALHOST", "localhost.", "localhost:8000", "127.0.0.1:1", "127.9.9.9", "[::1]", "[0:0:0:0:0:0:0:1]"]
    with client_with(settings, allowed_hosts=("service.example", "fd00::07")) as client:
        for host in (*hosts, "service.example", "Service.Example.:443", "[fd00::7]:80"):
            assert client.get("/health", headers={"host": host}).status_code == 200, host


def test_other_hosts_are_misdirected(client: TestClient) -> None:
    for host in ("localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::2]", "xlocalhost", "a" * 5000):
        for path in ("/health", "/docs", "/none"):
            body = assert_problem(client.get(path, headers={"host": host}), status=421, code="misdirected_request")
            assert "REPLACEME_ALLOWED_HOSTS" in str(body["detail"])


def test_metrics_have_any_host_and_their_key(settings: Settings) -> None:
    """A Prometheus in a cluster asks pods at their addresses."""
    host, key = {"host": "10.1.2.3:8000"}, {"authorization": f"Bearer {METRICS_KEY}"}
    for root in ("", "/prune"):
        with client_with(settings, root_path=root) as client:
            assert client.get(f"{root}/metrics", headers={**host, **key}).status_code == 200
            assert_problem(client.get(f"{root}/metrics", headers=host), status=401, code="unauthenticated")
            other = client.get(f"{root}/metrics/x", headers={**host, **key})
            assert_problem(other, status=421, code="misdirected_request")


def test_what_is_no_host_is_a_bad_request(client: TestClient) -> None:
    for host in ("", "a@localhost", "localhost:80:80", "[::1", "::1", "localhost/x"):
        assert_problem(client.get("/health", headers={"host": host}), status=400, code="bad_request")
    two = [("host", "localhost"), ("host", "evil.example")]
    assert_problem(client.get("/health", headers=two), status=400, code="bad_request")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example", "content-type": "text/plain"},
        {"origin": "http://localhost.evil.example"},
        {"origin": "null"},
        {"origin": "http://[::2]"},
        {"origin": "http://localhost@evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "Cross-Site", "origin": HERE},
        # a program of somebody else on the same machine
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "https://127.0.0.1"},
        {"origin": "http://LOCALHOST:8000"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "same-site", "origin": HERE},
        {"sec-fetch-site": "unknown"},
    ],
)
def test_pages_of_others_write_nothing(client: TestClient, job_id: str, headers: dict[str, str]) -> None:
    headers = {"host": "127.0.0.1:8000", **headers}
    response = client.post(f"/jobs/{job_id}/cancel", content=b"", headers=headers)
    assert_problem(response, status=403, code="foreign_origin")
    assert_problem(client.post("/jobs", json=SMALLEST, headers=headers), status=403, code="foreign_origin")
    for method in ("PUT", "PATCH", "DELETE"):
        assert_problem(client.request(method, "/jobs", headers=headers), status=403, code="foreign_origin")
    assert [job["status"] for job in client.get("/jobs", headers=headers).json()["items"]] == ["queued"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "127.0.0.1:8000", "origin": HERE, "sec-fetch-site": "same-origin"},
        {"host": "LocalHost.:3000", "origin": "http://localhost:3000"},
        {"host": "[0:0::1]:8000", "origin": "https://[::1]:8000"},
        {"host": "localhost:80", "origin": "http://localhost"},
        {"host": "localhost", "origin": "https://localhost:443"},
        {"host": "127.0.0.1:8000", "origin": "https://testserver"},  # a proxy that sends another `Host`
        {"sec-fetch-site": "none"},
    ],
)
def test_pages_of_ours_write(client: TestClient, job_id: str, headers: dict[str, str]) -> None:
    assert client.post(f"/jobs/{job_id}/cancel", headers=headers).json()["status"] == "cancelled"


def test_any_host_still_means_that_pages_come_from_it(settings: Settings) -> None:
    with client_with(settings, allowed_hosts=("*",)) as client:
        own = {"host": "a.example:8443", "origin": "https://a.example:8443"}
        assert client.post("/jobs", json=SMALLEST, headers=own).status_code == 202
        for origin in ("https://b.example", "https://a.example", "https://a.example:9443"):
            foreign = {**own, "origin": origin}
            assert_problem(client.post("/jobs", json=SMALLEST, headers=foreign), status=403, code="foreign_origin")


def test_every_response_says_what_a_browser_may_do_with_it(
    settings: Settings, client: TestClient, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    script = re.findall(r'src="(/ui/static/[^"]+)"', client.get("/ui/jobs").text)[0]
    client.post(f"/jobs/{job_id}/cancel")
    found = [
        *(client.get(path, follow_redirects=False) for path in ("/", "/health", "/jobs", "/openapi.json", "/none")),
        *(client.get(path) for path in ("/docs", "/static-offline-docs/swagger-ui.css", script, "/ui/none")),
        client.get(f"/jobs/{job_id}", headers={"if-none-match": client.get(f"/jobs/{job_id}").headers["etag"]}),
        client.get(f"/jobs/{job_id}/events", headers={"accept": "text/event-stream"}),
        client.get("/jobs?unknown=1"),
        client.head("/jobs"),
        client.put("/jobs"),
        client.post("/jobs", content="x"),
        client.get("/health", headers={"host": "elsewhere.example"}),
        client.get("/jobs", headers={"authorization": "Bearer wrong"}),
        client.post("/jobs", headers={"origin": "null"}),
        client.delete(f"/jobs/{job_id}"),
    ]
    monkeypatch.setattr(reading, "page", fail)
    found += [client.get("/jobs"), client.get("/ui/jobs")]
    with client_with(settings, cors_origins=("https://a.example",)) as allowing:
        asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
        found.append(allowing.options("/jobs", headers=asked))
    assert {one.status_code for one in found} >= {200, 204, 303, 304, 401, 403, 404, 405, 415, 421, 422, 500}
    for one in found:
        told = [one.headers.get_list(name) for name in ("x-content-type-options", "x-frame-options")]
        assert told == [["nosniff"], ["DENY"]], (one.request.url, one.headers)
        (policy,) = one.headers.get_list("content-security-policy")
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe-inline" not in policy.partition("style-src")[0]


ORIGIN = "https://app.example.org"


def test_links_have_the_path_under_which_the_api_is_shown(settings: Settings) -> None:
    """Whether the proxy removes it or not."""
    with client_with(settings, root_path="/prune") as client:
        for path in ("/jobs", "/prune/jobs"):
            answer = client.post(path, json=SMALLEST)
            assert answer.headers["location"].startswith("/prune/jobs/")
            assert answer.json()["links"]["events"] == f"{answer.headers['location']}/events"
            client.post(path, json=SMALLEST)
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


def test_settings_that_mean_nothing_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        *(("root_path", "prune"), ("root_path", "/prune/"), ("trusted_proxies", "proxy")),
        *(("cors_origins", "*"), ("cors_origins", "app.example.org"), ("cors_origins", "https://a/b")),
        *(("allowed_hosts", one) for one in ("http://a.example", "a.example:80", "a b", "a/b")),
    ):
        with pytest.raises(ValidationError, match=r"expected|without scheme and port"):
            Settings(_env_file=None, **{name: value})  # type: ignore[arg-type]
    monkeypatch.setenv("REPLACEME_ALLOWED_HOSTS", "a.example, ::1,[fd00::7],10.0.0.1, *")
    assert len(Settings(_env_file=None).allowed_hosts or ()) == 5  # type: ignore[call-arg]
