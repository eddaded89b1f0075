"""Load a model from a local directory: safetensors only, no code of the model's own, no network.

transformers chooses files itself: by name, by an index, by keys of the config, by folders that it finds. So it is given
a directory with links to the admitted files, in which it can open no other, and with configs of known keys only.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from replaceme_core.engine.model.safetensors_io import STORED_DTYPES, all_finite, tensors_of
from replaceme_core.engine.model.side_files.config import known_config
from replaceme_core.engine.model.side_files.generation import GENERATION_CONFIG, known_generation
from replaceme_core.engine.model.side_files.tokenizer import SPECIAL_TOKENS, TOKENIZER_CONFIG, known_options
from replaceme_core.engine.text.trial import ends_badly
from replaceme_core.errors import BrokenModel, InvalidInput
from replaceme_core.families.layout import Layout
from replaceme_core.families.table import lookup
from replaceme_core.hub.files import read_json_file
from replaceme_core.hub.model_config import admit_config, check_weights
from replaceme_core.hub.model_files import CONFIG, INDEX, SINGLE, read_config, side_files, weight_files
from replaceme_core.library_errors import library_errors

_REWRITTEN: Mapping[str, Callable[[Mapping[str, object]], dict[str, object]]] = {
    CONFIG: known_config,
    GENERATION_CONFIG: known_generation,
    TOKENIZER_CONFIG: known_options,
    SPECIAL_TOKENS: known_options,
}
"""Files that transformers gets with known keys only."""
SAMPLE_TEXT = "A line of text, with 2 numbers: 3.14\n\tand \u00e9\u4e2d\U0001f600. " * 8
"""For a tokenizer to show that it works."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class StoredWeights:
    """`dtype` is the one of most values, `values` the number of all."""

    dtype: torch.dtype
    values: int


def stored_weights(directory: Path) -> StoredWeights:
    """Dtype and number of the stored weights, from the headers alone. Raises `BrokenModel` and as `admit_config` does.

    Reads the header of every file and compares them with the config, so that a truncated download and a config of
    another model are found before anything is built or computed.
    """
    tensors = tensors_of(weight_files(directory))
    config = read_config(directory)
    check_weights(admit_config(config), config, tensors)
    counts = Counter[torch.dtype]()
    for stored in tensors:
        counts[STORED_DTYPES[stored.dtype]] += stored.numel
    _check_values(load_config(directory), counts.total())
    return StoredWeights(dtype=counts.most_common(1)[0][0], values=counts.total())


@contextmanager
def private_view(directory: Path, *, weights: bool = True) -> Iterator[Path]:
    """Yield the directory of links, which is deleted at the end; without the `weights` where they are not loaded.

    Its config has the known keys only.

    Raises `BrokenModel` and `UnsafeModel` as `weight_files` and `side_files` do.
    """
    with tempfile.TemporaryDirectory(prefix="replaceme-model-") as place:
        view = Path(place)
        for path in side_files(directory):
            if (known := _REWRITTEN.get(path.name)) is not None:
                content = known(read_json_file(path, path.name))
                (view / path.name).write_text(json.dumps(content), encoding="utf-8")
            else:
                (view / path.name).symlink_to(path.resolve())
        if weights:
            _link_weights(weight_files(directory), view)
        yield view


def _link_weights(files: list[Path], view: Path) -> None:
    """Link them under names as `save_pretrained` gives: transformers loads some other names in another way.

    The index follows from the files, whatever the model's own says about them.
    """
    count = len(files)
    names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    if count == 1:
        names = [SINGLE]
    for name, path in zip(names, files, strict=True):
        (view / name).symlink_to(path.resolve())
    if count > 1:
        named = dict(zip(files, names, strict=True))
        weight_map = {stored.name: named[stored.path] for stored in tensors_of(files)}
        (view / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


def load_config(directory: Path) -> PreTrainedConfig:
    """The config with every default filled in. Raises `BrokenModel`, and as `admit_config` does."""
    with private_view(directory, weights=False) as view:
        return _config(view, directory)


def _config(view: Path, directory: Path) -> PreTrainedConfig:
    if not (view / CONFIG).exists():
        read_config(directory)  # raises
    with library_errors("config.json cannot be used", view=view, name=directory.name):
        config = AutoConfig.from_pretrained(view, local_files_only=True, trust_remote_code=False)
    assert isinstance(config, PreTrainedConfig)
    window = getattr(config, "sliding_window", None)
    if window is not None and window <= 0 and getattr(config, "use_sliding_window", True):
        raise BrokenModel(
            f"config.json gives sliding_window as {window}; it must be a positive number of tokens, or null",
            field="model",
            value=window,
        )
    return config


def check_positions(config: PreTrainedConfig, *, longest: int) -> None:
    """Raise `InvalidInput` if the model has a table of positions that is too short for `longest` tokens."""
    row = lookup(config.model_type)
    if isinstance(row, Layout) and row.learned_positions and config.max_position_embeddings < longest:
        raise InvalidInput(
            f"the model has {config.max_position_embeddings} positions, and sequences of {longest} tokens are asked "
            "for; set calibration.max_length to fewer",
            field="calibration.max_length",
            value=longest,
        )


def _check_values(config: PreTrainedConfig, stored: int) -> None:
    """Raise `BrokenModel` if the model of `config` has more values than are stored: memory for all would be taken."""
    with library_errors("config.json does not describe a model that can be built"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    described = sum(parameter.numel() for parameter in model.parameters())
    if described > stored:
        raise BrokenModel(
            f"config.json describes a model of {described:,} values, and the files hold {stored:,}; use the config "
            "that was saved with these weights",
            field="model",
        )


def load_model(directory: Path, *, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The model in eval mode, with the default attention of its class (eager where it caps its scores).

    Raises `BrokenModel` for weights that are damaged, missing, of the wrong shape or not finite.
    """
    with private_view(directory) as view:
        loaded = _load(view, directory, dtype)
    model, loading = loaded
    for kind in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, loading[kind])):
            raise BrokenModel(
                f"the weights do not match config.json: {kind.replace('_', ' ')} {', '.join(names[:3])}"
                f"{' and more' if len(names) > 3 else ''}",
                field="model",
            )
    if not all(all_finite(parameter) for parameter in model.parameters()):
        for stored in tensors_of(weight_files(directory)):
            stored.read()  # raises for the one that is not finite; where none is, the values are too large for `dtype`
    model.to(torch.device(device))  # type: ignore[arg-type]  # typed as a decorated method without self
    model.eval()
    return model


def _load(view: Path, directory: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, Sequence[object]]]:
    config = _config(view, directory)
    with library_errors("the model cannot be built from its files", view=view, name=directory.name):
        try:
            return AutoModelForCausalLM.from_pretrained(  # type: ignore[return-value]
                view,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported in one sentence instead of a page
            )
        except SafetensorError as error:
            raise BrokenModel(f"the weights are truncated or damaged ({error})", field="model") from None


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the same directory, which has been seen to turn text into ids.

    Raises `BrokenModel`, also for one that a short text keeps busy.
    """
    with private_view(directory, weights=False) as view:
        end = ends_badly(lambda: _read_tokenizer(view))
        if end is not None:
            raise _broken_tokenizer(f"{end} for a text of {len(SAMPLE_TEXT)} characters")
        with library_errors("the tokenizer cannot be loaded", view=view, name=directory.name):
            return _read_tokenizer(view)


def _read_tokenizer(view: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(view, local_files_only=True, trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise _broken_tokenizer(f"is a {type(tokenizer).__name__}, which is none")
    ids = tokenizer(SAMPLE_TEXT, verbose=False)["input_ids"]
    if not ids:  # a class without a vocabulary
        raise _broken_tokenizer("makes no tokens of a text")
    tokenizer.decode(ids)
    return tokenizer


def _broken_tokenizer(what: str) -> BrokenModel:
    message = f"the tokenizer {what}; use the one that was saved with the model"
    return BrokenModel(message, field="model", value="tokenizer.json")
