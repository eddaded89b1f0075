"""Sign-in with a key, the session's cookie, the token of every form, and the headers of every page."""

import re

import pytest
from fastapi.routing import APIRoute
from sqlalchemy import select
from starlette.testclient import TestClient

from api.dashboard import jobs, new_job, service
from api.http.callers import COOKIE, SESSION_SECONDS, Session, Sessions
from api.main import create_app
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import Keys
from replaceme_core.ledger.tables import EndedSessionRow
from replaceme_core.secrets_box import SecretsBox
from replaceme_core.settings import Settings
from tests.fixtures.api.keys import Holder, hold_key
from tests.fixtures.api.pages import sign_in, text_of, token_of
from tests.fixtures.api.requests import SMALLEST

FORM = {"content-type": "application/x-www-form-urlencoded"}
PAGES = [route for module in (jobs, new_job, service) for route in module.router.routes]


@pytest.fixture
def holder(client: TestClient, settings: Settings) -> Holder:
    return hold_key(client, settings, owner="alice", scopes=["jobs:read", "jobs:write"])


def test_without_keys_on_this_machine_nobody_signs_in(client: TestClient) -> None:
    for path in ("/", "/ui", "/ui/", "/ui/sign-in"):
        response = client.get(path, follow_redirects=False)
        assert (response.status_code, response.headers["location"]) == (303, "/ui/jobs")
    page = client.get("/ui/jobs")
    assert (page.status_code, "Sign out" in page.text) == (200, False)


def test_with_keys_every_page_leads_to_the_sign_in_and_back(client: TestClient, holder: Holder) -> None:
    response = client.get("/ui/jobs?status=failed", follow_redirects=False)
    there = "/ui/sign-in?next=%2Fui%2Fjobs%3Fstatus%3Dfailed"
    assert (response.status_code, response.headers["location"]) == (303, there)
    response = client.get("/ui/jobs", headers={"HX-Request": "true"}, follow_redirects=False)
    assert (response.status_code, response.headers["hx-redirect"]) == (401, "/ui/sign-in?next=%2Fui%2Fjobs")
    response = client.post("/ui/plan", headers={"HX-Request": "true"}, follow_redirects=False)
    assert (response.status_code, response.headers.get("hx-redirect")) == (401, None), "the form would be lost"
    page = client.get(there)
    assert 'name="next" value="/ui/jobs?status=failed"' in page.text
    form = {"csrf_token": token_of(page), "key": holder.text, "next": "/ui/jobs?status=failed"}
    done = client.post("/ui/sign-in", data=form, follow_redirects=False)
    assert (done.status_code, done.headers["location"]) == (303, "/ui/jobs?status=failed")
    assert "Sign out" in client.get("/ui/jobs").text


def test_nobody_is_sent_to_another_site(client: TestClient, holder: Holder) -> None:
    def leads_to(place: str) -> str:
        client.cookies.clear()
        form = {"csrf_token": token_of(client.get("/ui/sign-in")), "key": holder.text, "next": place}
        return client.post("/ui/sign-in", data=form, follow_redirects=False).headers["location"]

    others = ("https://elsewhere.example", "//elsewhere.example", "/ui/../jobs", "/\\elsewhere", "/ui/jobs\r\nX: y")
    assert {leads_to(place) for place in others} == {"/ui/jobs"}
    assert leads_to("/ui/sweep.csv?label=a") == "/ui/sweep.csv?label=a"


def test_a_key_that_is_not_known_is_refused_beside_its_field(client: TestClient, holder: Holder) -> None:
    response = sign_in(client, holder.text[:-1] + ("y" if holder.text.endswith("x") else "x"))
    assert response.status_code == 422
    assert "its form or its checksum is wrong" in response.text
    assert 'aria-invalid="true"' in response.text
    assert holder.text[:-1] not in response.text
    assert client.get("/ui/jobs", follow_redirects=False).status_code == 303


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(
    client: TestClient, holder: Holder, settings: Settings
) -> None:
    cookie = sign_in(client, holder.text).headers["set-cookie"]
    assert holder.text not in cookie
    parts = {part.strip().partition("=")[0]: part.strip().partition("=")[2] for part in cookie.split(";")[1:]}
    assert parts == {"Max-Age": str(SESSION_SECONDS), "Path": "/ui", "HttpOnly": "", "SameSite": "Lax"}
    assert client.get("/jobs", headers={"cookie": cookie.partition(";")[0]}).status_code == 401, "for pages alone"
    beside = {"cookie": f'prefs={{"theme": "dark"}}; {cookie.partition(";")[0]}'}
    client.cookies.clear()
    assert client.get("/ui/jobs", headers=beside, follow_redirects=False).status_code == 200, "cookies of others"
    with TestClient(create_app(settings), base_url="https://testserver") as encrypted:
        assert "; Secure" in encrypted.get("/ui/sign-in").headers["set-cookie"]
    for other in ("", "x", "gAAAAAB", '"', "é", "a" * 5000):
        headers = {"cookie": f"{COOKIE}={other}".encode()}
        assert client.get("/ui/jobs", headers=headers, follow_redirects=False).status_code == 303


def test_a_service_at_another_port_of_the_host_ends_no_session(client: TestClient, apart: Settings) -> None:
    """A browser sends the cookies of all ports of a host to each of them."""
    token = token_of(client.get("/ui/new"))
    with TestClient(create_app(apart), base_url="http://testserver:8001", cookies=client.cookies) as other:
        elsewhere = token_of(other.get("/ui/new"))
        client.cookies.update(other.cookies)
        sent = client.post("/ui/sign-out", data={"csrf_token": token}, follow_redirects=False)
        other.cookies.update(client.cookies)
        there = other.post("/ui/sign-out", data={"csrf_token": elsewhere}, follow_redirects=False)
    assert (sent.status_code, there.status_code) == (303, 303)


def test_signing_out_ends_the_session_and_copies_of_its_cookie(client: TestClient, holder: Holder) -> None:
    sign_in(client, holder.text)
    other = {"cookie": f"{COOKIE}={client.cookies[COOKIE]}"}
    client.cookies.clear()
    sign_in(client, holder.text)
    copy = {"cookie": f"{COOKIE}={client.cookies[COOKIE]}"}
    token = token_of(client.get("/ui/jobs"))
    done = client.post("/ui/sign-out", data={"csrf_token": token}, follow_redirects=False)
    assert (done.status_code, done.headers["location"]) == (303, "/ui/sign-in")
    assert client.get("/ui/jobs", follow_redirects=False).status_code == 303
    client.cookies.clear()
    refused = client.get("/ui/jobs", headers=copy, follow_redirects=False)
    assert (refused.status_code, refused.headers["location"]) == (303, "/ui/sign-in?next=%2Fui%2Fjobs")
    assert "You have signed out" in client.get("/ui/sign-in", headers=copy).text
    job = holder.post("/jobs", json=SMALLEST).json()["id"]
    client.post(f"/ui/jobs/{job}/cancel", data={"csrf_token": token}, headers=copy)
    assert holder.get(f"/jobs/{job}").json()["status"] == "queued"
    again = client.post("/ui/sign-out", data={"csrf_token": token}, headers=copy, follow_redirects=False)
    assert again.status_code == 303, "twice is no error"
    client.cookies.clear()
    assert client.get("/ui/jobs", headers=other, follow_redirects=False).status_code == 200, "another browser stays"


def test_sessions_that_were_ended_are_forgotten_when_they_would_have_expired(sqlite_database: Database) -> None:
    with sqlite_database.session() as session:
        keys = Keys(session)
        for name, seconds in (("past", -1.0), ("past", -1.0), ("first", 60.0), ("second", 60.0)):
            keys.end_session(name, seconds=seconds)
        assert session.scalars(select(EndedSessionRow.id).order_by(EndedSessionRow.id)).all() == ["first", "second"]


def test_sessions_expire_and_other_secrets_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    box = SecretsBox("")
    sessions = Sessions(box)
    session = Session.start("hash")
    assert sessions.open(sessions.seal(session)) == session
    assert Sessions(box).open(sessions.seal(session)) is None, "another process has another key"
    monkeypatch.setattr("time.time", lambda: session.expires_at + 1)
    assert sessions.open(sessions.seal(session)) is None


def test_no_form_is_taken_without_its_token(client: TestClient, holder: Holder) -> None:
    assert {"/ui/sign-in", "/ui/sign-out"} <= {route.path for route in PAGES if "POST" in route.methods}
    sign_in(client, holder.text)
    job = holder.post("/jobs", json=SMALLEST).json()["id"]
    of_another = token_of(TestClient(client.app).get("/ui/sign-in"))
    for route in (one for one in PAGES if isinstance(one, APIRoute) and one.methods != {"GET"}):
        path = re.sub(r"\{\w+\}", job, str(route.path))
        for form in ({}, {"csrf_token": "x"}, {"csrf_token": of_another}):
            refused = client.post(path, data=form or None, headers=FORM)
            assert refused.status_code == 403, path
            assert "csrf_failed" in refused.text
        assert client.post(path, json={"csrf_token": "x"}).status_code == 415
    assert holder.get(f"/jobs/{job}").json()["status"] == "queued"
    assert len(holder.get("/jobs").json()["items"]) == 1


def test_no_page_runs_what_is_not_ours(client: TestClient, holder: Holder) -> None:
    pages = [client.get("/ui/sign-in")]
    sign_in(client, holder.text)
    paths = ("/ui/jobs", "/ui/nothing", "/ui/jobs?unknown=1", "/ui/jobs?label=wrong")
    pages += [*map(client.get, paths), client.post("/ui/sign-out", data={"csrf_token": "x"})]
    for page in pages:
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert {policy[name] for name in ("script-src", "style-src", "connect-src", "form-action")} == {"'self'"}
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["cache-control"] == "no-store"
        assert not re.search(
            r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=|javascript:|https?://(?!www.w3.org)", page.text
        )
        for name in re.findall(r'(?:src|href)="(/ui/static/[^"]+)"', page.text):
            file = client.get(name)
            assert file.status_code == 200
            assert "immutable" in file.headers["cache-control"]
            known = client.get(name, headers={"if-none-match": file.headers["etag"]})
            part = client.get(name, headers={"range": "bytes=0-9"})
            assert [(one.status_code, one.headers["cache-control"]) for one in (known, part)] == [
                (304, file.headers["cache-control"]),  # a browser takes it over for what it has
                (206, file.headers["cache-control"]),
            ]
            assert client.get(re.sub(r"static/\w+", "static/other", name)).status_code == 404


def test_errors_are_pages_that_say_what_to_do_and_reveal_nothing(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("planted secret")

    monkeypatch.setattr("api.dashboard.jobs.reading.totals", fail)
    page = client.get("/ui/jobs")
    assert (page.status_code, "planted" in page.text) == (500, False)
    assert "The log of the service says more" in text_of(page)
    assert "content-security-policy" in page.headers
    reader = hold_key(client, settings, owner="alice", scopes=["webhooks:write"])
    sign_in(client, reader.text)
    page = client.get("/ui/jobs")
    assert (page.status_code, "Sign out" in page.text) == (403, True)
    assert "Sign in with another key" in text_of(page)


def test_below_a_root_path_all_addresses_have_it(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"root_path": "/prune"}))) as client:
        assert client.get("/", follow_redirects=False).headers["location"] == "/prune/ui/jobs"
        page = client.get("/prune/ui/jobs")
        assert "Path=/prune/ui;" in page.headers["set-cookie"]
        addresses = re.findall(r'(?:src|href|action|hx-get)="([^"#]+)"', page.text)
        assert addresses
        assert all(address.startswith("/prune/") for address in addresses)
