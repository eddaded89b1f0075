"""The pages of API keys and webhooks: a secret is shown once, mistakes stand at their fields, ends are final."""

import re

from starlette.testclient import TestClient

from replaceme_core.settings import Settings
from tests.fixtures.api.keys import hold_key
from tests.fixtures.api.pages import rows_of, sign_in, text_of, token_of
from tests.fixtures.api.requests import SMALLEST

URL = "https://hooks.example.com/a?b=<c>"


def as_admin(client: TestClient, settings: Settings) -> dict[str, str]:
    """Signed in; what every form sends."""
    scopes = ["jobs:read", "jobs:write", "webhooks:write", "admin"]
    sign_in(client, hold_key(client, settings, owner="root", scopes=scopes).text)
    return {"csrf_token": token_of(client.get("/ui/jobs"))}


def test_a_key_is_made_used_replaced_and_revoked(client: TestClient, settings: Settings) -> None:
    form = as_admin(client, settings)
    asked = {**form, "name": "ci <b>", "owner": "team-a", "scopes-jobs:read": "on", "expires": "2592000"}
    made = client.post("/ui/keys", data=asked)
    texts = re.findall(r"rmk_[0-9A-Za-z]{49}", made.text)
    assert (made.status_code, len(texts), made.headers["cache-control"]) == (200, 1, "no-store")
    assert "ci &lt;b&gt;" in made.text
    holder = {"authorization": f"Bearer {texts[0]}"}
    assert client.get("/jobs", headers=holder).status_code == 200
    listed = client.get("/ui/keys")
    assert texts[0] not in listed.text
    row = next(row for row in rows_of(listed) if row[0] == "ci <b>")
    assert row[1:4] == ["team-a", f"{texts[0][:8]} …", "jobs:read"] or row[1:4] == [
        "team-a",
        f"{texts[0][:8]}…",
        "jobs:read",
    ]
    assert row[4].startswith("● live , until 20")

    found = re.findall(r'data-opens="revoke-([0-9a-f-]{36})" aria-label="Revoke ci', listed.text)
    replaced = client.post(f"/ui/keys/{found[0]}/rotate", data=form)
    newer = re.findall(r"rmk_[0-9A-Za-z]{49}", replaced.text)
    assert len(newer) == 1 and newer != texts
    revoked = client.post(f"/ui/keys/{found[0]}/revoke", data=form, follow_redirects=False)
    assert (revoked.status_code, revoked.headers["location"]) == (303, "/ui/keys")
    assert client.get("/jobs", headers=holder).status_code == 401
    assert client.get("/jobs", headers={"authorization": f"Bearer {newer[0]}"}).status_code == 200
    assert "✕ revoked" in text_of(client.get("/ui/keys"))
    again = client.post(f"/ui/keys/{found[0]}/rotate", data=form)
    assert (again.status_code, "The job has changed" in text_of(again)) == (409, False)
    assert client.post(f"/ui/keys/{found[0]}/other", data=form).status_code == 422
    assert client.post("/ui/keys/none/revoke", data=form).status_code == 404


def test_a_key_with_a_mistake_is_not_made(client: TestClient, settings: Settings) -> None:
    form, reads = as_admin(client, settings), {"scopes-jobs:read": "on"}
    for fields, beside in (
        (reads, "name"),
        ({"name": "a", "owner": "a b", **reads}, "owner"),
        ({"name": "a"}, "scopes"),
        ({"name": "a", "scopes-all": "on"}, "scopes"),
    ):
        page = client.post("/ui/keys", data={**form, **fields})
        message = re.search(rf'<p class="error" id="{beside}-error">([^<]+)</p>', page.text)
        assert page.status_code == 422 and message is not None and "expected" in message[1], fields
        assert f'value="{fields.get("name", "")}"' in page.text
    assert len([row for row in rows_of(client.get("/ui/keys")) if len(row) == 7]) == 2, "a heading, and the admin's key"


def test_only_an_admin_sees_keys(client: TestClient, settings: Settings) -> None:
    holder = hold_key(client, settings, owner="a", scopes=["jobs:read", "jobs:write", "webhooks:write"])
    sign_in(client, holder.text)
    page = client.get("/ui/jobs")
    assert ('href="/ui/keys"' in page.text, 'href="/ui/webhooks"' in page.text) == (False, True)
    assert client.get("/ui/keys").status_code == 403
    made = client.post("/ui/keys", data={"csrf_token": token_of(page), "name": "a", "scopes-admin": "on"})
    assert made.status_code == 403 and "rmk_" not in made.text
    client.cookies.clear()
    sign_in(client, hold_key(client, settings, owner="b", scopes=["admin"]).text)
    refused = client.get("/ui/jobs")
    assert (refused.status_code, 'href="/ui/keys"' in refused.text) == (403, True)


def test_a_webhook_from_its_form_to_its_end(client: TestClient, settings: Settings) -> None:
    form = as_admin(client, settings)
    asked = {**form, "url": URL, "labels": "team=a", "payload": "full", "events-created": "on", "events-failed": "on"}
    made = client.post("/ui/webhooks", data=asked)
    assert len(re.findall(r"whsec_[0-9A-Za-z+/=]+", made.text)) == 1, text_of(made)
    listed = client.get("/ui/webhooks")
    assert "whsec_" not in listed.text and "<c>" not in listed.text
    assert [URL, "created, failed", "team=a", "● on"] in [row[:4] for row in rows_of(listed)]
    there = re.findall(r'href="(/ui/webhooks/[0-9a-f-]{36})"', listed.text)[0]
    body = {**SMALLEST, "labels": {"team": "a"}}
    job = hold_key(client, settings, owner="root", scopes=["jobs:write"]).post("/jobs", json=body).json()["id"]
    rows = rows_of(client.get(there))
    assert ["job.created", job[:8]] in [row[:2] for row in rows]
    assert client.post(f"{there}/disable", data=form).status_code == 200
    assert "✕ off : turned off" in text_of(client.get(there))
    assert client.post(f"{there}/enable", data=form).status_code == 200
    rotated = client.post(f"{there}/rotate", data=form)
    assert len(re.findall(r"whsec_[0-9A-Za-z+/=]+", rotated.text)) == 1
    assert "Earlier secret signs until" in rotated.text
    again = client.post(f"{there}/deliveries/evt_{job}-1/redeliver", data=form, follow_redirects=False)
    assert (again.status_code, again.headers["location"]) == (303, there)
    assert client.post(f"{there}/delete", data=form).status_code == 200
    assert client.get(there).status_code == 404


def test_a_webhook_with_a_mistake_is_not_made(client: TestClient, settings: Settings) -> None:
    form, ended = {**as_admin(client, settings), "payload": "thin"}, {"events-failed": "on"}
    for fields, beside in (
        ({"url": "", **ended}, "url"),
        ({"url": "http://127.0.0.1/x", **ended}, "url"),
        ({"url": URL}, "events"),
        ({"url": URL, "events-other": "on"}, "events"),
        ({"url": URL, **ended, "labels": "team"}, "labels"),
    ):
        page = client.post("/ui/webhooks", data={**form, **fields})
        assert page.status_code == 422
        assert re.search(rf'<p class="error" id="{beside}-error">[^<]+</p>', page.text), text_of(page)
    assert "expected NAME=VALUE, got 'team'" in text_of(page)
    assert "There are no webhooks" in text_of(client.get("/ui/webhooks"))


def test_a_reader_changes_no_webhook(client: TestClient, settings: Settings) -> None:
    form = as_admin(client, settings)
    client.post("/ui/webhooks", data={**form, "url": URL, "payload": "thin", "events-failed": "on"})
    there = re.findall(r'href="(/ui/webhooks/[0-9a-f-]{36})"', client.get("/ui/webhooks").text)[0]
    sign_in(client, hold_key(client, settings, owner="root", scopes=["jobs:read"]).text)
    page = client.get(there)
    assert (page.status_code, "New secret" in page.text, "Add the webhook" in client.get("/ui/webhooks").text) == (
        200,
        False,
        False,
    )
    form = {"csrf_token": token_of(page)}
    for action in ("rotate", "disable", "delete"):
        assert client.post(f"{there}/{action}", data=form).status_code == 403
    sign_in(client, hold_key(client, settings, owner="other", scopes=["jobs:read", "webhooks:write"]).text)
    assert client.get(there).status_code == 404
