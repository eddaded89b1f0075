"""Admission of a model in a directory: its config and its files. Torch-free, and opens no weights."""

from pathlib import Path

from replaceme_core.admission.model_config import ModelOutline, admit_config
from replaceme_core.admission.model_files import CONFIG, admit_file, side_files, weight_files
from replaceme_core.errors import BrokenModel
from replaceme_core.hub.files import read_json_file


def read_config(directory: Path) -> dict[str, object]:
    """The content of `config.json`, unchecked. Raises `BrokenModel` and `UnsafeModel`."""
    if not (directory / CONFIG).exists():
        raise BrokenModel(f"{directory.name} has no {CONFIG}", field="model", value=directory.name)
    return read_json_file(admit_file(directory, CONFIG), CONFIG)


def read_outline(directory: Path) -> ModelOutline:
    """The model in `directory` as its `config.json` describes it, with all files that will be used admitted.

    Raises `BrokenModel`, `UnsupportedFamily` or `UnsafeModel`.
    """
    outline = admit_config(read_config(directory))
    weight_files(directory)
    side_files(directory)
    return outline
