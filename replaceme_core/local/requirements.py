"""What a run on this machine needs: settings, the worker's libraries, and a confinement that works."""

from importlib.util import find_spec
from itertools import chain

from pydantic import ValidationError

from replaceme_core.errors import InvalidInput
from replaceme_core.runner.process import RUNNER_COMMAND, Confinement, choose_confinement
from replaceme_core.settings import Settings

_OF_A_MODEL = ("torch", "transformers", "safetensors", "psutil")
LIBRARIES = {
    "api": ("fastapi", "fastapi_offline", "limits", "prometheus_client", "uvicorn"),
    "local": _OF_A_MODEL,
    "worker": _OF_A_MODEL,
}
"""What each extra installs, as modules, without what can be missing."""


def read_settings(**given: object) -> Settings:
    """The settings from the environment, overridden by those `given`. Raises `InvalidInput` that names a wrong one."""
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = "REPLACEME_" + "_".join(map(str, first["loc"][:1])).upper()
        raise InvalidInput(f"{name}: {first['msg']}") from error


def check_installed(command: str, *extras: str) -> None:
    """Raises `InvalidInput` if libraries of these extras are missing; the message names the one installation needed."""
    missing = [name for name in dict.fromkeys(chain(*map(LIBRARIES.__getitem__, extras))) if find_spec(name) is None]
    if missing:
        raise InvalidInput(
            f"replaceme {command} needs libraries that are not installed ({', '.join(missing)}); "
            f"install them with: pip install 'replaceme[{','.join(extras)}]'"
        )


def find_runner(settings: Settings, *, command: str) -> tuple[str, ...]:
    """The command that starts the runner, the same as in a worker.

    Raises `InvalidInput` if its libraries are not installed. A runner of the operator's own is not checked.
    """
    if settings.runner_command is not None:
        return settings.runner_command
    check_installed(command, "local")
    return RUNNER_COMMAND


def find_confinement(settings: Settings) -> Confinement:
    """The confinement of the runner, the same as in a worker. Raises `InvalidInput` for one that does not work."""
    return choose_confinement(
        settings.sandbox,
        user=settings.sandbox_user,
        own_command=settings.runner_command is not None,
        memory_bytes=settings.runner_memory_bytes,
    )
