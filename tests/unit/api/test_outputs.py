"""Outputs that are refused before there is a job."""

from pathlib import Path

from starlette.testclient import TestClient

from api.main import create_app
from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.hub.port import Publication
from replaceme_core.settings import Settings
from tests.fixtures.api.requests import SMALLEST, fields, put_model


def publish_privately(hub_root: Path, folder: Path, repo_id: str) -> None:
    publication = Publication(folder=folder, repo_id=repo_id, private=True, title="t", trailer="ReplaceMe-Job: 1")
    DirectoryHub(hub_root).publish(publication, before_commit=lambda: None)


def test_outputs_that_are_not_the_callers_are_refused(client: TestClient, hub_root: Path) -> None:
    put_model(hub_root, "local/existing")
    for output, field in (
        ("local/existing", "output.repo_id"),
        ("org/elsewhere", "output.repo_id"),
        ("datasets/x", "output.repo_id"),
        ({"repo_id": "local/existing", "overwrite": True}, "output.overwrite"),
    ):
        assert fields(client.post("/jobs", json={**SMALLEST, "output": output})).keys() == {field}, output
    assert client.get("/jobs").json()["items"] == []


def test_what_comes_from_a_private_source_stays_private(settings: Settings, hub_root: Path) -> None:
    publish_privately(hub_root, hub_root / "org/name", "local/secret")
    public = {**SMALLEST, "model": "local/secret", "output": {"private": False}}
    with TestClient(create_app(settings)) as client:
        assert fields(client.post("/jobs", json=public)) == {"output.private": False}
        assert client.post("/jobs", json={**public, "output": {}}).status_code == 202
        assert client.post("/jobs", json={**public, "model": "org/name"}).status_code == 202
    with TestClient(create_app(settings.model_copy(update={"allow_publishing_private": True}))) as client:
        assert client.post("/jobs", json=public).status_code == 202


def test_the_operator_names_the_namespaces(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"output_namespaces": ("me", "org")}))) as client:
        named = client.post("/jobs", json={**SMALLEST, "output": "org/small"}).json()
        assert named["spec"]["output"] == {
            "repo_id": "org/small",
            "private": True,
            "overwrite": False,
            "create_pr": False,
        }
        assert client.post("/jobs", json=SMALLEST).json()["spec"]["output"]["repo_id"].startswith("me/name-")
        assert fields(client.post("/jobs", json={**SMALLEST, "output": "local/small"})).keys() == {"output.repo_id"}
