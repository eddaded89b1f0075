"""What an installation without extras brings and can do: the whole command line, without torch or a web framework."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Collection
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from api.cli.main import COMMANDS
from benchmarks.harness.checkout import ROOT
from tests.fixtures.cli.stub_service import JOB_ID, a_job, stub_service
from tests.fixtures.service.deployment import brought, project
from tests.fixtures.service.serve import environment

Done = subprocess.CompletedProcess[str]
UNWANTED = {"torch", "transformers", "safetensors", "pyarrow", "fastapi", "uvicorn", "matplotlib"}


@pytest.fixture(scope="module")
def of_extras() -> dict[str, str]:
    """Modules that the base installation does not bring, each with its distribution."""
    base = brought(project()["project"]["dependencies"]) | {"replaceme"}
    owners = {module: {canonicalize_name(name) for name in names} for module, names in packages_distributions().items()}
    return {module: min(names) for module, names in owners.items() if not names & base}


def without_extras(modules: Collection[str], program: str, *arguments: str, **settings: str) -> Done:
    """Run a program with `main` where none of `modules` can be imported."""
    program = f"import sys; sys.modules |= dict.fromkeys({sorted(modules)}); from api.cli.main import main\n{program}"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_each_command_has_help_without_extras(of_extras: dict[str, str]) -> None:
    program = (
        f"for name in {[*COMMANDS]}:\n    try:\n        sys.argv = ['replaceme', name, '--help']; main()\n"
        "    except SystemExit as end:\n        assert not end.code\n"
    )
    done = without_extras(of_extras, program)
    assert (done.returncode, done.stderr) == (0, "")
    assert [name for name in COMMANDS if f"Usage: replaceme {name} " not in done.stdout] == []


def test_what_needs_no_extra_works_without(of_extras: dict[str, str], tmp_path: Path) -> None:
    job = ("--model", "org/name", "--ratio", "0.25", "--calibration", "builtin:general")
    with stub_service() as service:
        service.answers["POST /jobs"] = [(202, a_job())]
        done = without_extras(of_extras, "main()", "submit", *job, "--url", service.url, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["id"] == JOB_ID
    data = str(tmp_path / "data")
    done = without_extras(of_extras, "main()", "keys", "create", "first", REPLACEME_DATA=data)
    assert done.returncode == 0, done.stderr
    done = without_extras(of_extras, "main()", "doctor", "--json", REPLACEME_DATA=data)
    assert {"torch", "broker"} <= {one["name"] for one in json.loads(done.stdout)["findings"]}, done.stderr


@pytest.mark.parametrize(
    ("arguments", "extras"),
    [
        (["serve"], "api,worker"),
        (["worker"], "worker"),
        (["openapi"], "api"),
        (["compress", "model", "--out", "out", "--ratio", "0.5", "--calibration", "builtin:general"], "local"),
        (["evaluate", "model"], "local"),
        (["reproduce", "result"], "local"),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else "",
)
def test_what_needs_extras_names_one_installation(of_extras: dict[str, str], arguments: list[str], extras: str) -> None:
    done = without_extras(of_extras, "main()", *arguments, REPLACEME_RUNNER_COMMAND="null")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    found = re.fullmatch(
        rf"error: replaceme {arguments[0]} needs libraries that are not installed \((.+)\); "
        rf"install them with: pip install 'replaceme\[{extras}\]'",
        line,
    )
    assert found, line
    missing = {of_extras[name] for name in found[1].split(", ")}
    assert missing <= brought([f"replaceme[{extras}]"]), "that installation brings them"


def test_the_base_installation_brings_no_torch() -> None:
    metadata = project()["project"]
    base = brought(metadata["dependencies"])
    assert {"httpx2", "pydantic", "typer", "rich", "pyyaml"} <= base
    assert base & UNWANTED == set()
    assert "torch" in brought(metadata["optional-dependencies"]["worker"]), "what is brought is found"


def test_the_worker_brings_what_its_modules_import(of_extras: dict[str, str]) -> None:
    """Each on its own: what another library of a full installation brings too may be missing."""
    paths = [path for room in ("worker", "replaceme_core/engine") for path in (ROOT / room).rglob("*.py")]
    needed = {of_extras[module] for path in paths for module in imported(path) if module in of_extras}
    assert needed >= {"pillow", "torch"}, "what is imported is found"
    assert needed - brought(project()["project"]["optional-dependencies"]["worker"]) == set()


def imported(path: Path) -> set[str]:
    """The packages that a module imports when it is loaded."""
    found = set()
    for line in ast.parse(path.read_text("utf-8")).body:
        match line:
            case ast.Import(names=names):
                found |= {one.name.partition(".")[0] for one in names}
            case ast.ImportFrom(module=str(module), level=0):
                found.add(module.partition(".")[0])
    return found
