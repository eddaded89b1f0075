"""Load a model from a local directory: safetensors only, no code of the model's own, no network.

transformers chooses files itself: by name, by an index, by keys of the config, by folders that it finds. So it is given
a directory of links to the admitted files, in which it can open no other.
"""

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from replaceme_core.admission.config_against_weights import check_weights
from replaceme_core.admission.model_config import admit_config, refuse_file_keys
from replaceme_core.admission.model_files import CONFIG, INDEX, SINGLE, read_config, side_files, weight_files
from replaceme_core.errors import BrokenModel, OutOfMemory
from replaceme_core.families.known_config import keep_known
from replaceme_core.families.table import FAMILIES
from replaceme_core.models.safetensors_io import StoredTensor, all_finite, stored_tensors

_BAD_CONFIG = (
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    StrictDataclassError,
)
"""What transformers raises for values of a config that it does not expect."""
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
    names = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    counts = dict.fromkeys(names.values(), 0)
    tensors = tensors_of(weight_files(directory))
    for stored in tensors:
        if stored.dtype not in names:
            raise BrokenModel(
                f"{stored.path.name}: {stored.name} is stored as {stored.dtype}; F32, BF16 and F16 are supported",
                field="model",
            )
        counts[names[stored.dtype]] += stored.numel
    config = read_config(directory)
    check_weights(admit_config(config), config, {stored.name: stored.shape for stored in tensors})
    _check_values(load_config(directory), sum(counts.values()))
    return StoredWeights(dtype=max(counts, key=lambda dtype: counts[dtype]), values=sum(counts.values()))


def tensors_of(files: Sequence[Path]) -> list[StoredTensor]:
    """The tensors of all the weight files. Raises `BrokenModel`, also for a tensor that is in two files."""
    found: dict[str, StoredTensor] = {}
    for path in files:
        for stored in stored_tensors(path):
            other = found.setdefault(stored.name, stored)
            if other is not stored:
                raise BrokenModel(
                    f"{stored.name} is in {other.path.name} and in {path.name}; remove one of them", field="model"
                )
    return list(found.values())


@contextmanager
def private_view(directory: Path, *, weights: bool = True) -> Iterator[Path]:
    """Yield the directory of links, which is deleted at the end; without the `weights` where they are not loaded.

    Its config has the known keys only.

    Raises `BrokenModel` and `UnsafeModel` as `weight_files` and `side_files` do.
    """
    with tempfile.TemporaryDirectory(prefix="replaceme-model-") as place:
        view = Path(place)
        for path in side_files(directory):
            if path.name == CONFIG:
                (view / CONFIG).write_text(json.dumps(_known_config(directory)), encoding="utf-8")
            else:
                (view / path.name).symlink_to(path.resolve())
        if weights:
            _link_weights(weight_files(directory), view)
        yield view


def _known_config(directory: Path) -> dict[str, object]:
    """The keys of the config that its model type knows; all of them for a model type that is not compressed."""
    config = read_config(directory)
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        return config
    kind = CONFIG_MAPPING[model_type]
    declared = {field.name for field in dataclasses.fields(kind)}
    return keep_known(config, declared | kind.attribute_map.keys() | set(kind.attribute_map.values()))


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
    """The config with every default filled in. Raises `BrokenModel`, and `UnsafeModel` if it names other weights."""
    with private_view(directory, weights=False) as view:
        return _config(view, directory)


def _config(view: Path, directory: Path) -> PreTrainedConfig:
    refuse_file_keys(read_config(directory))
    try:
        config = AutoConfig.from_pretrained(view, local_files_only=True, trust_remote_code=False)
    except (OSError, *_BAD_CONFIG) as error:
        raise BrokenModel(f"config.json cannot be read: {_said(error, view, directory)}", field="model") from error
    assert isinstance(config, PreTrainedConfig)
    return config


def _said(error: Exception, view: Path, directory: Path) -> str:
    """What transformers says, with the name of the model in place of the directory that was made for it."""
    return str(error).replace(str(view), directory.name)


def _check_values(config: PreTrainedConfig, stored: int) -> None:
    """Raise `BrokenModel` if the model of `config` has more values than are stored: memory for all would be taken."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except _BAD_CONFIG as error:
        raise BrokenModel(f"config.json does not describe a model that can be built: {error}", field="model") from error
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
    except (OSError, *_BAD_CONFIG) as error:
        if "allocate" in str(error):  # on the host, only the text of the error says so
            raise OutOfMemory(f"there is not enough memory to load the model: {error}") from error
        raise BrokenModel(
            f"the model cannot be built from its files: {_said(error, view, directory)}", field="model"
        ) from error


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the same directory. Raises `BrokenModel`."""
    with private_view(directory, weights=False) as view:
        try:
            tokenizer = AutoTokenizer.from_pretrained(view, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            said = _said(error, view, directory)
            raise BrokenModel(f"the tokenizer cannot be loaded: {said}", field="model") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer
