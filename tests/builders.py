"""Values with defaults, for tests that care about one or two of their fields."""

from replaceme_core.spec import CompressionRequest, CompressionSpec


def a_spec(**fields: object) -> CompressionSpec:
    """A resolved specification; `fields` are those of a request's body."""
    body: dict[str, object] = {
        "model": {"repo_id": "org/model", "revision": "a" * 40},
        "calibration": "builtin:pydoc-topics",
        "output": "org/model-small",
    }
    if "drop" not in fields:
        body["ratio"] = 0.25
    return CompressionRequest.model_validate({**body, **fields}).to_spec()
