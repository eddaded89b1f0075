"""Write a model so that it is either complete or not there at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from transformers import PreTrainedModel

from replaceme_core.errors import InvalidInput
from replaceme_core.plan import CARRIED_FILES

SHARD_SIZE = "5GB"


@contextmanager
def complete_or_absent(target: Path) -> Iterator[Path]:
    """A directory beside `target` that becomes `target` by one rename when the block ends well, and else vanishes.

    Raises `InvalidInput` if `target` exists.
    """
    if target.exists():
        raise InvalidInput(f"{target} exists already; name a new directory", field="out", value=str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.partial-{uuid4().hex[:8]}"
    partial.mkdir()
    try:
        yield partial
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def save_model(model: PreTrainedModel, directory: Path, *, source: Path) -> None:
    """Weights in the model's own dtype, sharded; config and generation config; tokenizer files as they were.

    The tokenizer's files are copied, not written anew: a round trip could change them, and nothing needs it.
    """
    for stale in ("quantization_config", "_name_or_path"):
        if hasattr(model.config, stale):
            delattr(model.config, stale)
    model.save_pretrained(directory, max_shard_size=SHARD_SIZE)
    for name in CARRIED_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
