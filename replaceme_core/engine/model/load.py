"""Load a model from a local directory: safetensors only, no code of the model's own, no network.

transformers chooses files itself: by name, by an index, by keys of the config, by folders that it finds. So it is given
a directory with links to the admitted files, in which it can open no other, and with configs of known keys only.
"""

import inspect
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_utils import str_to_torch_dtype
from transformers.utils import logging as transformers_logging

from replaceme_core.engine.model.known_keys import (
    GENERATION_CONFIG,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    known_config,
    known_generation,
    known_options,
    known_preparation,
)
from replaceme_core.engine.model.safetensors_io import all_finite, tensors_of
from replaceme_core.engine.text.limits import ends_badly
from replaceme_core.errors import BrokenModel, InvalidInput
from replaceme_core.families.layout import FAMILIES, IMAGE_MODEL, LANGUAGE_MODEL
from replaceme_core.families.resolve import part_config, resolve
from replaceme_core.hub.files import read_json_file
from replaceme_core.hub.model_config import admit_config, read_weights
from replaceme_core.hub.model_files import CONFIG, INDEX, PREPROCESSOR, SINGLE, read_config, used_files, weight_files
from replaceme_core.library_errors import library_errors
from replaceme_core.request.removal import check_length
from replaceme_core.request.resolve import ResolvedCompute
from replaceme_core.request.spec import Quantization

_REWRITTEN: Mapping[str, Callable[[Mapping[str, object]], dict[str, object]]] = {
    CONFIG: known_config,
    GENERATION_CONFIG: known_generation,
    TOKENIZER_CONFIG: known_options,
    SPECIAL_TOKENS: known_options,
    PREPROCESSOR: known_preparation,
}
"""Files that transformers gets with known keys only."""
SAMPLE_TEXT = "A line of text, with 2 numbers: 3.14\n\tand \u00e9\u4e2d\U0001f600. " * 8
"""For a tokenizer to show that it works."""
transformers_logging.disable_progress_bar()  # a runner has a log, and no terminal
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
    content = read_config(directory)
    tensors = read_weights(admit_config(content), content, tensors_of(weight_files(directory)))
    counts = Counter[torch.dtype]()
    for stored in tensors:
        counts[str_to_torch_dtype[stored.dtype]] += stored.numel
    config = load_config(directory)
    _check_values(config, counts.total(), options=_without_pooler(config, (stored.name for stored in tensors)))
    return StoredWeights(dtype=counts.most_common(1)[0][0], values=counts.total())


@contextmanager
def private_view(directory: Path, *, weights: bool = True) -> Iterator[Path]:
    """Yield the directory of links, which is deleted at the end; without the `weights` where they are not loaded.

    Its config has the known keys only.

    Raises `BrokenModel` and `UnsafeModel` as `weight_files` and `used_files` do.
    """
    with tempfile.TemporaryDirectory(prefix="replaceme-model-") as place:
        view = Path(place)
        for path in used_files(directory):
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
    text = part_config(config)
    window = getattr(text, "sliding_window", None)
    if window is not None and window <= 0 and getattr(text, "use_sliding_window", True):
        raise BrokenModel(
            f"config.json gives sliding_window as {window}; it must be a positive number of tokens, or null",
            value=window,
        )
    return config


def auto_class(config: PreTrainedConfig) -> type[AutoModelForCausalLM]:
    """The class that builds the whole model of `config`; of a type that is not compressed, that of language models."""
    row = FAMILIES.get(config.model_type)
    name = None if row is None else row.loads_with(config.architectures)
    found = getattr(transformers, name or LANGUAGE_MODEL)
    assert isinstance(found, type)
    return found


def _without_pooler(config: PreTrainedConfig, names: Iterable[str]) -> dict[str, object]:
    """Arguments for a model of images that was saved without its pooling layer, which its class would make up."""
    if auto_class(config).__name__ != IMAGE_MODEL:
        return {}
    kind = MODEL_MAPPING.get(type(config), None)
    has_option = isinstance(kind, type) and "add_pooling_layer" in inspect.signature(kind).parameters
    return {"add_pooling_layer": False} if has_option and not any("pooler" in name for name in names) else {}


def check_positions(config: PreTrainedConfig, *, longest: int) -> None:
    """Raise `InvalidInput` if the model has a table of positions that is too short for `longest` tokens."""
    row = FAMILIES.get(config.model_type)
    if row is not None and row.learned_positions:
        check_length(longest, getattr(part_config(config), "max_position_embeddings", None))


def _check_values(config: PreTrainedConfig, stored: int, *, options: Mapping[str, object]) -> None:
    """Raise `BrokenModel` if the model of `config` has more values than are stored: memory for all would be taken."""
    with library_errors("config.json does not describe a model that can be built"), torch.device("meta"):
        model = auto_class(config).from_config(config, trust_remote_code=False, **options)
    described = sum(parameter.numel() for parameter in model.parameters())
    if described > stored:
        raise BrokenModel(
            f"config.json describes a model of {described:,} values, and the files hold {stored:,}; use the config "
            "that was saved with these weights"
        )


def load_model(directory: Path, *, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The model in eval mode, with the default attention of its class (eager where it caps its scores).

    Raises `BrokenModel` for weights that are damaged, missing, of the wrong shape or not finite.
    """
    with private_view(directory) as view:
        model, loading = _load(view, directory, dtype)
    for what in ("missing", "mismatched"):
        if names := sorted(map(str, loading[f"{what}_keys"])):
            raise does_not_fit(what, names)
    if not all(all_finite(parameter) for parameter in model.parameters()):
        for stored in tensors_of(weight_files(directory)):
            stored.read()  # raises for the one that is not finite; where none is, the values are too large for `dtype`
    keep_separate(model)
    model.to(torch.device(device))  # type: ignore[arg-type]  # typed as a decorated method without self
    model.eval()
    return model


def keep_separate(model: PreTrainedModel) -> None:
    """Let the config say so where the head has values of its own, although its class or its file ties it.

    transformers keeps both when it loads them. Whatever ties weights once more would overwrite the head.
    """
    if set(model.get_expanded_tied_weights_keys(all_submodels=True)) - set(model.all_tied_weights_keys):
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


def does_not_fit(what: str, names: list[str]) -> BrokenModel:
    """The error for weights with keys that are "missing" or "mismatched"."""
    more = " and more" if len(names) > 3 else ""
    return BrokenModel(f"the weights do not match config.json: {what} keys {', '.join(names[:3])}{more}")


def _load(view: Path, directory: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, Sequence[object]]]:
    config = _config(view, directory)
    options = _without_pooler(config, (stored.name for stored in tensors_of(weight_files(directory))))
    with library_errors("the model cannot be built from its files", view=view, name=directory.name):
        try:
            return auto_class(config).from_pretrained(  # type: ignore[return-value]
                view,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                use_kernels=False,  # by default transformers 5.25 replaces layers by code from the Hub
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported in one sentence instead of a page
                **options,
            )
        except SafetensorError as error:
            raise BrokenModel(f"the weights are truncated or damaged ({error})") from None


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
    return BrokenModel(message, value="tokenizer.json")


LEAST_SHARE = 0.5
"""Share of the values of the blocks that must be quantizable. With less, too little memory is saved."""
MULTIPLE = 32
"""Rows and columns must be multiples of this for the kernels of some processors. Other layers stay as they are."""
FIELD = "compute.quantization"


def load_quantized(directory: Path, *, dtype: torch.dtype, compute: ResolvedCompute) -> PreTrainedModel:
    """As `load_model`, with the linear layers of the blocks in `compute.quantization`; other weights in `dtype`.

    The host needs memory for the whole model in `dtype`. Raises `InvalidInput` where bitsandbytes is not installed, and
    for a family whose weights are not in linear layers (Conv1D, stacked experts); `BrokenModel` as `load_model`.
    """
    assert compute.quantization is not None
    make = _maker(compute.quantization, dtype=dtype)
    model = load_model(directory, dtype=dtype, device="cpu")
    blocks = resolve(model).blocks
    whole = sum(parameter.numel() for parameter in blocks.parameters())
    share = sum(module.weight.numel() for module in blocks.modules() if _fits(module)) / whole
    if share < LEAST_SHARE:
        raise InvalidInput(
            f"only {share:.0%} of the weights in the blocks of this {model.config.model_type} model can be quantized "
            f"to {compute.quantization} (linear layers with sides that are multiples of {MULTIPLE}); leave {FIELD} out",
            field=FIELD,
            value=str(compute.quantization),
        )
    for block in blocks:
        for parent in list(block.modules()):
            for name, child in parent.named_children():
                if _fits(child):
                    setattr(parent, name, make(child).to(compute.device))
    model.to(torch.device(compute.device))  # type: ignore[arg-type]  # typed as a decorated method without self
    model.eval()
    return model


def _fits(module: nn.Module) -> TypeGuard[nn.Linear]:
    if type(module) is not nn.Linear:
        return False
    return module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0


def _maker(quantization: Quantization, *, dtype: torch.dtype) -> Callable[[nn.Linear], nn.Module]:
    """A function that quantizes a layer in `dtype`; the values are rounded when it is moved to its device."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise InvalidInput(
            f"bitsandbytes is not installed on the worker ({error}); install replaceme[quantized] there, or "
            f"leave {FIELD} out",
            field=FIELD,
            value=str(quantization),
        ) from None

    def quantized(layer: nn.Linear) -> nn.Module:
        sizes, weight = (layer.in_features, layer.out_features), layer.weight.detach()
        module: nn.Linear
        if quantization is Quantization.FOUR_BITS:
            module = bitsandbytes.nn.Linear4bit(*sizes, bias=False, compute_dtype=dtype, quant_type="nf4")
            module.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=module)
        else:
            module = bitsandbytes.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False)
            module.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        module.bias = layer.bias
        return module

    return quantized
