"""The Dockerfiles: what they install, whom they run as and what they start."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from api.cli import launch as serve
from benchmarks.harness.checkout import ROOT
from tests.fixtures.service.deployment import DOCKERFILES, Image, brought, built_services, project

API, WORKER = (Image.read(ROOT / "docker" / f"{name}.Dockerfile") for name in ("api", "worker"))

each_image = pytest.mark.parametrize("image", [API, WORKER], ids=["api", "worker"])


def test_all_are_used() -> None:
    assert [path.name for path in DOCKERFILES] == ["api.Dockerfile", "worker.Dockerfile"]
    assert {ROOT / service["build"]["dockerfile"] for service in built_services().values()} == set(DOCKERFILES)


def test_each_installs_its_own_extra() -> None:
    assert API.extras() == {"api", "telemetry"}
    assert WORKER.extras() == {"worker", "plot", "tasks", "telemetry"}
    assert {"api", "worker"} < project()["project"]["optional-dependencies"].keys()


def test_the_api_image_has_no_torch() -> None:
    packages = project()["project"]
    extras = packages["optional-dependencies"]
    common = packages["dependencies"]
    model_side = {"torch", "transformers", "pyarrow", "safetensors"}
    assert brought([*common, *extras["api"]]) & model_side == set()
    assert brought([*common, *extras["worker"]]) >= model_side
    assert "torch" not in "\n".join(each.arguments for each in API.instructions)


def test_the_worker_image_installs_torch_in_the_range_of_the_extra() -> None:
    (installed,) = re.findall(r'"(torch[^"]*)"', "\n".join(each.arguments for each in WORKER.all("RUN")))
    assert installed in project()["project"]["optional-dependencies"]["worker"]


@each_image
def test_builds_in_one_stage_and_runs_in_another(image: Image) -> None:
    final = image.final_stage()
    assert len(image.all("FROM")) == 2
    assert [each.arguments for each in final.all("COPY")] == ["--from=build /opt/replaceme /opt/replaceme"]
    assert final.environment()["PATH"].startswith("/opt/replaceme/bin:")
    assert not [each for each in final.all("RUN") if "pip" in each.arguments]
    bases = {each.arguments.split()[0] for each in image.all("FROM")}
    assert len(bases) == 1, "the environment holds links to its interpreter"


@each_image
def test_runs_as_nobody_special(image: Image) -> None:
    user, group = image.final_stage().one("USER").arguments.split(":")
    assert int(user) >= 1000
    assert int(group) >= 1000
    after = image.instructions[image.instructions.index(image.one("USER")) :]
    assert {each.keyword for each in after} <= {"USER", "EXPOSE", "HEALTHCHECK", "CMD"}


@each_image
def test_needs_no_program_for_its_health(image: Image) -> None:
    assert "python" in image.one("HEALTHCHECK").arguments
    assert not re.search(r"\b(curl|wget)\b", "\n".join(each.arguments for each in image.instructions))


def test_they_start_what_serve_starts() -> None:
    assert API.one("CMD").words() == ["python", *serve.api_command("0.0.0.0", 8000)[1:]]
    assert WORKER.one("CMD").words() == ["python", *serve.worker_command()[1:]]
    assert "REMAP_SIGTERM" not in WORKER.environment(), "a worker that is stopped first lets its job go on for a while"


@pytest.mark.parametrize(
    "command",
    [
        API.one("CMD").words(),
        WORKER.one("CMD").words(),
        *(each["command"] for each in built_services().values() if "command" in each),
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_what_is_started_exists(command: list[str]) -> None:
    assert command[:2] == ["python", "-m"]
    module = find_spec(command[2])
    assert module is not None
    if module.submodule_search_locations is not None:
        assert find_spec(f"{command[2]}.__main__") is not None
    for name in re.findall(r"(?:^| )(api\.[\w.]+|worker\.[\w.]+)", " ".join(command)):
        assert find_spec(name) is not None


@each_image
def test_the_engine_is_given_what_is_copied_and_no_more(image: Image) -> None:
    everything, *rules = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert everything == "*"
    given = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        source.removeprefix("./")
        for each in image.all("COPY")
        if "--from" not in each.arguments
        for source in each.arguments.split()[:-1]
    }
    assert copied == given
    assert all((ROOT / name).exists() for name in given)
    packages = {pattern.rstrip("*") for pattern in project()["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert given == packages | {
        "pyproject.toml",
        project()["project"]["readme"],
        *project()["project"]["license-files"],
    }


def test_a_linter_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--no-color", *DOCKERFILES], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0
