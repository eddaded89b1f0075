"""What commands on this machine need: the worker's libraries, and a directory with a model."""

from importlib.util import find_spec
from pathlib import Path

from replaceme_core.admission.model_config import ModelOutline
from replaceme_core.admission.model_directory import read_outline
from replaceme_core.errors import InvalidInput
from replaceme_core.runner.confinement import Confinement, choose_confinement
from replaceme_core.runner.process import RUNNER_COMMAND
from replaceme_core.settings import Settings

LIBRARIES = ("torch", "transformers", "safetensors", "psutil")
INSTALL = "pip install 'replaceme[local]'"


def find_runner(settings: Settings, *, command: str) -> tuple[str, ...]:
    """The command that starts the runner, the same as in a worker.

    Raises `InvalidInput` if its libraries are not installed. A runner of the operator's own is not checked.
    """
    if settings.runner_command is not None:
        return settings.runner_command
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise InvalidInput(
            f"replaceme {command} needs libraries that are not installed ({', '.join(missing)}); "
            f"install them with: {INSTALL}"
        )
    return RUNNER_COMMAND


def find_confinement(settings: Settings) -> Confinement:
    """The confinement of the runner, the same as in a worker. Raises `InvalidInput` for one that does not work."""
    return choose_confinement(
        settings.sandbox,
        user=settings.sandbox_user,
        own_command=settings.runner_command is not None,
        memory_bytes=settings.runner_memory_bytes,
    )


def admit_model(directory: Path) -> ModelOutline:
    """The model in `directory` as its config describes it. Raises `InvalidInput`, before torch is loaded."""
    if not (directory / "config.json").is_file():
        what = "a model: it has no config.json" if directory.is_dir() else "a directory"
        raise InvalidInput(f"{directory} is not {what}", field="model", value=str(directory))
    return read_outline(directory)
