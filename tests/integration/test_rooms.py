"""Modules that must not be loaded. import-linter reads imports; these tests inspect a running interpreter."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import replaceme_core
from api.cli.main import COMMANDS

MODEL_LIBRARIES = ("torch", "transformers", "pyarrow", "safetensors")

CORE = Path(replaceme_core.__file__).parent
NEED_TORCH = {"engine"}
NEED_NO_TORCH = {
    "broker",
    "errors",
    "families",
    "hardware",
    "hub",
    "ledger",
    "library_errors",
    "local",
    "plan",
    "report",
    "request",
    "runner",
    "secrets_box",
    "settings",
    "shapes",
    "signals",
    "telemetry",
    "validation",
    "webhooks",
    "wording",
}
LOOKS_AT_A_LIVE_MODEL = "replaceme_core.families.resolve"


def loaded_by(modules: Sequence[str], libraries: Sequence[str]) -> list[str]:
    """Which of `libraries`, or of their modules, a fresh interpreter has loaded after importing `modules`."""
    unwanted = tuple(f"{library}." for library in libraries)
    program = f"""
import importlib, sys
for module in {list(modules)!r}:
    importlib.import_module(module)
print(*(name for name in sys.modules if f"{{name}}.".startswith({unwanted!r})), sep="\\n")
"""
    nowhere = {
        "REPLACEME_DATABASE_URL": "nonsense",
        "REPLACEME_BROKER_URL": "nonsense",
    }  # an import connects to nothing
    fresh = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert fresh.returncode == 0, fresh.stderr
    return fresh.stdout.split()


def modules_of(room: str) -> list[str]:
    """All modules of a top-level room of the core, which is a folder or a file."""
    files = sorted((CORE / room).rglob("*.py")) or [CORE / f"{room}.py"]
    names = (".".join(path.relative_to(CORE.parent).with_suffix("").parts) for path in files)
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("api.main", (*MODEL_LIBRARIES, "opentelemetry.sdk", "opentelemetry.exporter", "matplotlib", "worker")),
        ("api.client.client", (*MODEL_LIBRARIES, "worker", "fastapi", "sqlalchemy", "typer")),
        ("worker.app", (*MODEL_LIBRARIES, "opentelemetry.sdk", "opentelemetry.exporter")),
        ("worker.supervisor", MODEL_LIBRARIES),
        ("replaceme_core.settings", (*MODEL_LIBRARIES, "huggingface_hub")),
    ],
)
def test_does_not_load(module: str, unwanted: tuple[str, ...]) -> None:
    assert loaded_by([module], unwanted) == []


def test_no_subcommand_loads_a_model_library_or_a_web_framework() -> None:
    modules = {f"api.cli.{place.rpartition('.')[0]}" for _, place, _ in COMMANDS.values()}
    assert "api.cli.local" in modules
    assert loaded_by(sorted(modules), (*MODEL_LIBRARIES, "matplotlib", "worker", "fastapi", "sqlalchemy")) == []


def test_each_room_of_the_core_needs_torch_or_does_not() -> None:
    rooms = [path.stem for path in CORE.iterdir() if path.suffix == ".py" or any(path.rglob("*.py"))]
    assert sorted([*NEED_TORCH, *NEED_NO_TORCH]) == sorted(room for room in rooms if room != "__init__"), (
        "add a new room to one of the two sets"
    )


def test_rooms_that_need_no_torch_do_not_load_it() -> None:
    """In one interpreter, to save time: `loaded_by` for one room shows which it is."""
    modules = {module for room in NEED_NO_TORCH for module in modules_of(room)}
    assert modules > {LOOKS_AT_A_LIVE_MODEL, "replaceme_core.families.layout"}
    assert loaded_by(sorted(modules - {LOOKS_AT_A_LIVE_MODEL}), MODEL_LIBRARIES) == []
