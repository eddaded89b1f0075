"""Load a model from a local directory: safetensors only, no code of the model's own, no network."""

import json
from collections.abc import Sequence
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

from replaceme_core.admission.model_config import WEIGHTS_SUFFIX
from replaceme_core.errors import BrokenModel, OutOfMemory
from replaceme_core.models.safetensors_io import stored_tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class StoredWeights:
    """`dtype` is the one of most values, `values` the number of all."""

    dtype: torch.dtype
    values: int


def stored_weights(directory: Path) -> StoredWeights:
    """Dtype and number of the stored weights, from the headers alone. Raises `BrokenModel`.

    Reads the header of every file, so that a truncated download is found before anything is computed.
    """
    names = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    counts = dict.fromkeys(names.values(), 0)
    for path in weight_files(directory):
        for stored in stored_tensors(path):
            if stored.dtype not in names:
                raise BrokenModel(
                    f"{path.name}: {stored.name} is stored as {stored.dtype}; F32, BF16 and F16 are supported",
                    field="model",
                )
            counts[names[stored.dtype]] += stored.numel
    return StoredWeights(dtype=max(counts, key=lambda dtype: counts[dtype]), values=sum(counts.values()))


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files; all that an index names are there. Raises `BrokenModel`."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return sorted(directory.glob(f"*{WEIGHTS_SUFFIX}"))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise BrokenModel("model.safetensors.index.json has no usable weight_map", field="model") from None
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise BrokenModel(f"the index names {missing[0]}, which is missing", field="model", value=missing[:3])
    return [directory / name for name in names]


def load_config(directory: Path) -> PreTrainedConfig:
    """The config with every default filled in. Raises `BrokenModel`."""
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenModel(f"config.json cannot be read: {error}", field="model") from error
    assert isinstance(config, PreTrainedConfig)
    return config


def load_model(directory: Path, *, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The model in eval mode, with the default attention of its class (eager where it caps its scores).

    Raises `BrokenModel` for weights that are damaged, missing or of the wrong shape.
    """
    try:
        loaded: tuple[PreTrainedModel, dict[str, Sequence[object]]] = AutoModelForCausalLM.from_pretrained(  # type: ignore[assignment]
            directory,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below in one sentence instead of a page
        )
    except SafetensorError as error:
        raise BrokenModel(f"the weights are truncated or damaged ({error})", field="model") from None
    except (ValueError, LookupError, TypeError, RuntimeError, ArithmeticError, AttributeError) as error:
        if "allocate" in str(error):  # on the host, only the text of the error says so
            raise OutOfMemory(f"there is not enough memory to load the model: {error}") from error
        raise BrokenModel(f"the model cannot be built from its files: {error}", field="model") from error
    model, loading = loaded
    for kind in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, loading[kind])):
            raise BrokenModel(
                f"the weights do not match config.json: {kind.replace('_', ' ')} {', '.join(names[:3])}"
                f"{' and more' if len(names) > 3 else ''}",
                field="model",
            )
    model.to(torch.device(device))  # type: ignore[arg-type]  # typed as a decorated method without self
    model.eval()
    return model


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the same directory. Raises `BrokenModel`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise BrokenModel(f"the tokenizer cannot be loaded: {error}", field="model") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer
