"""Opens the Hub that the settings name."""

from pathlib import Path
from typing import Protocol

from pydantic import SecretStr

from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.hub.port import DIRECTORY_PREFIX, Hub


class HubSettings(Protocol):
    """The settings that a Hub is opened with (`replaceme_core.settings.Settings`)."""

    @property
    def hub(self) -> str: ...
    @property
    def hub_read_token(self) -> SecretStr | None: ...
    @property
    def hub_write_token(self) -> SecretStr | None: ...
    @property
    def hub_cache(self) -> Path: ...
    @property
    def hub_cache_bytes(self) -> int: ...
    @property
    def resolved_data(self) -> Path: ...


def open_hub(settings: HubSettings, *, token: str | None = None) -> Hub:
    """A directory hub for `dir:PATH`, else the Hub at that endpoint.

    With `token`, it is used for everything in place of the two of the settings. A directory hub uses none.
    """
    if settings.hub.startswith(DIRECTORY_PREFIX):
        root = Path(settings.hub.removeprefix(DIRECTORY_PREFIX)).expanduser().resolve()
        if root.is_relative_to(settings.resolved_data):  # elsewhere it is not created: it may be a missing mount
            root.mkdir(parents=True, exist_ok=True)
        return DirectoryHub(root)
    # imported here because the library reads its environment, and takes half a second, at import
    from replaceme_core.hub.huggingface import HuggingFaceHub

    return HuggingFaceHub(
        settings.hub.rstrip("/"),
        read_token=token or _reveal(settings.hub_read_token),
        write_token=token or _reveal(settings.hub_write_token),
        cache=settings.hub_cache,
        cache_bytes=settings.hub_cache_bytes,
    )


def _reveal(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret is not None and secret.get_secret_value() else None
