"""Save a model so that its directory is either complete or does not exist."""

import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from replaceme_core.engine.model.lazy_model import load_block
from replaceme_core.engine.model.safetensors_io import WeightsWriter
from replaceme_core.engine.model.surgery import kept_blocks, remove_blocks
from replaceme_core.errors import InvalidInput
from replaceme_core.families.resolve import ResolvedModel, resolve
from replaceme_core.hub.model_files import CARRIED_FILES, CONFIG, is_terms, side_files
from replaceme_core.library_errors import require_space

FILE_SIZE = "5GB"
FILE_BYTES = 5 * 10**9


@contextmanager
def complete_or_absent(target: Path, *, least: int = 0) -> Iterator[Path]:
    """Yield a directory beside `target`: renamed to `target` if the context ends without an error, else deleted.

    Raises `InvalidInput` if `target` exists, and `OutOfSpace` if the `least` that will be written, in bytes, has no
    room: hours of work would end there.
    """
    if target.exists():
        raise InvalidInput(f"{target} exists already; name a new directory", field="out", value=str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    require_space(target.parent, least, purpose="the result")
    partial = target.parent / f".{target.name}.partial-{uuid4().hex[:8]}"
    partial.mkdir()
    try:
        yield partial
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def save_model(model: PreTrainedModel, directory: Path, *, source: Path) -> None:
    """Save weights in the model's own dtype, config and generation config, and copy the tokenizer files of `source`."""
    _clean(model)
    model.save_pretrained(directory, max_shard_size=FILE_SIZE)
    _copy_files(source, directory)
    _equal_permissions(directory)


def save_block_by_block(
    model: PreTrainedModel,
    directory: Path,
    *,
    source: Path,
    removed: Sequence[int],
    change: Callable[[ResolvedModel, int], None],
) -> None:
    """As `save_model`, for a lazily loaded model that still has all its blocks; those in `removed` are not written.

    Each block that stays is read, changed in place by `change` and written, one at a time. At the end the blocks are
    removed from `model`, too.
    """
    resolved = resolve(model)
    kept = kept_blocks(len(resolved.blocks), removed)
    inside = f"{resolved.layout.blocks}."
    writer = WeightsWriter(directory=directory, limit=FILE_BYTES)
    own = dict(model.named_parameters())  # tied ones once
    copies = {name for name, _ in model.named_parameters(remove_duplicate=False)} - own.keys()
    rest = {name: values for name, values in model.state_dict().items() if not name.startswith(inside)}
    _write(writer, model, {name: values for name, values in rest.items() if name not in copies})
    for slot, index in enumerate(kept):
        block = load_block(resolved.blocks[index])
        change(resolved, index)
        _write(writer, model, {f"{inside}{slot}.{name}": values for name, values in block.state_dict().items()})
    writer.close()
    remove_blocks(resolved, removed)
    _clean(model)
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    _copy_files(source, directory)
    _equal_permissions(directory)


def _write(writer: WeightsWriter, model: PreTrainedModel, values: dict[str, torch.Tensor]) -> None:
    ignored = set(model._keys_to_ignore_on_save or ())
    for name, each in revert_weight_conversion(model, values).items():
        if name not in ignored:
            writer.add(name, each)


def _clean(model: PreTrainedModel) -> None:
    for stale in ("quantization_config", "_name_or_path"):
        if hasattr(model.config, stale):
            delattr(model.config, stale)


def _copy_files(source: Path, directory: Path) -> None:
    """Copy tokenizer and terms, not the card. Raises `UnsafeModel` for a link elsewhere.

    To load and save a tokenizer could change it.
    """
    for path in side_files(source):
        if path.name in CARRIED_FILES or is_terms(path.name):
            shutil.copyfile(path, directory / path.name)


def _equal_permissions(directory: Path) -> None:
    """The library lets nobody but the owner read its weights; give all files the permissions of the config."""
    mode = stat.S_IMODE((directory / CONFIG).stat().st_mode)
    for path in directory.iterdir():
        path.chmod(mode)
