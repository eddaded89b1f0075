"""Admission of a model in a directory: its config and its file names. Torch-free, and opens no weights."""

import json
from pathlib import Path

from replaceme_core.admission.model_config import ModelOutline, admit_config, admit_files
from replaceme_core.errors import BrokenModel


def read_outline(directory: Path) -> ModelOutline:
    """The model in `directory` as its `config.json` describes it.

    Raises `BrokenModel`, `UnsupportedFamily` or `UnsafeModel`.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BrokenModel(f"{directory.name} has no config.json", field="model", value=directory.name) from None
    except OSError as error:
        raise BrokenModel(
            f"config.json cannot be read: {error.strerror}", field="model", value=directory.name
        ) from error
    except ValueError as error:
        raise BrokenModel(f"config.json is not JSON: {error}", field="model", value=directory.name) from None
    if not isinstance(config, dict):
        raise BrokenModel("config.json is not a JSON object", field="model", value=directory.name)
    outline = admit_config(config)
    admit_files(tuple(sorted(path.name for path in directory.iterdir() if path.is_file())))
    return outline
