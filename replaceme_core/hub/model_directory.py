"""Admission of a model in a directory: its config and its files. Torch-free, and opens no weights."""

from pathlib import Path

from replaceme_core.hub.model_config import ModelOutline, admit_config
from replaceme_core.hub.model_files import read_config, side_files, weight_files


def read_outline(directory: Path) -> ModelOutline:
    """The model in `directory` as its `config.json` describes it, with all files that will be used admitted.

    Raises `BrokenModel`, `UnsupportedFamily` or `UnsafeModel`.
    """
    outline = admit_config(read_config(directory))
    weight_files(directory)
    side_files(directory)
    return outline
