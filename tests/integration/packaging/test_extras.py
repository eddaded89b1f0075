"""What the extra `[cli]` brings: a pipeline installs it in seconds, and it has no torch and no web framework."""

import re
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

from tests.fixtures.service.deployment import project

UNWANTED = {"torch", "transformers", "safetensors", "pyarrow", "fastapi", "uvicorn", "matplotlib"}


def brought(requirements: list[str]) -> set[str]:
    """The names of these distributions and of all that they require, as far as they are installed here."""
    found: set[str] = set()
    todo = [Requirement(text) for text in requirements]
    while todo:
        one = todo.pop()
        name = re.sub("[-_.]+", "-", one.name).lower()
        for extra in {"", *one.extras}:
            if (one.marker and not one.marker.evaluate({"extra": ""})) or f"{name}[{extra}]" in found:
                continue
            found |= {name, f"{name}[{extra}]"}
            try:
                texts = distribution(name).requires or []
            except PackageNotFoundError:  # for another system
                continue
            inner = [Requirement(text) for text in texts]
            for each in inner:
                if each.marker is None or each.marker.evaluate({"extra": extra}):
                    each.marker = None
                    todo.append(each)
    return found


def test_the_extra_for_pipelines_brings_no_torch() -> None:
    metadata = project()["project"]
    of_cli = brought([*metadata["dependencies"], *metadata["optional-dependencies"]["cli"]])
    assert {"httpx2", "pydantic", "typer", "pyyaml"} <= of_cli
    assert of_cli & UNWANTED == set()
    assert "torch" in brought(metadata["optional-dependencies"]["worker"]), "what is brought is found"
