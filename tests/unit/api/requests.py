"""Builders for the tests of the API, each with defaults."""

import json
from pathlib import Path

from httpx2 import Response

SMALLEST: dict[str, object] = {"model": "org/name", "ratio": 0.25, "calibration": "builtin:pydoc-topics"}


def put_model(root: Path, repo_id: str, *, blocks: int = 30, **config: object) -> Path:
    """A model as far as its config and its list of files go."""
    folder = root / repo_id
    folder.mkdir(parents=True)
    described = {"model_type": "llama", "num_hidden_layers": blocks, "hidden_size": 8, **config}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def put_dataset(root: Path, repo_id: str, *, split: str = "train") -> Path:
    folder = root / "datasets" / repo_id
    (folder / "data").mkdir(parents=True)
    (folder / "data" / f"{split}-00000-of-00001.parquet").write_bytes(b"rows")
    return folder


def assert_problem(response: Response, *, status: int, code: str) -> dict[str, object]:
    """The body of a response that must be a problem."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, object] = response.json()
    extra = {"errors"} if status == 422 else set()
    assert body.keys() == {"type", "title", "status", "detail", "code"} | extra
    assert (body["status"], body["code"]) == (status, code)
    assert body["title"]
    assert body["detail"]
    assert len(response.content) < 16_384
    return body


def fields(response: Response, *, code: str = "invalid_input") -> dict[str, object]:
    """Field -> value of the errors of a 422."""
    errors = assert_problem(response, status=422, code=code)["errors"]
    assert isinstance(errors, list)
    assert errors
    for error in errors:
        assert error.keys() == {"field", "value", "message"}
        assert error["message"]
    return {error["field"]: error["value"] for error in errors}
