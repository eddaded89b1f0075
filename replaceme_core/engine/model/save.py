"""Save a model so that its directory is either complete or does not exist, and check that what was saved works."""

import json
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TypeGuard
from uuid import uuid4

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import remap_legacy_layer_types
from transformers.core_model_loading import revert_weight_conversion

from replaceme_core.engine.model.changes import kept_blocks, remove_blocks
from replaceme_core.engine.model.lazy_model import load_block, open_model
from replaceme_core.engine.model.safetensors_io import WeightsWriter
from replaceme_core.errors import BrokenModel, InvalidInput, VerificationFailed
from replaceme_core.families.layout import FAMILIES
from replaceme_core.families.resolve import ResolvedModel, embeddings, part_config, resolve
from replaceme_core.hub.files import read_json_file
from replaceme_core.hub.model_files import CONFIG, WRITTEN_FILES, copy_files, read_config, side_files
from replaceme_core.library_errors import library_errors, require_space
from replaceme_core.request.spec import Loading
from replaceme_core.wording import counted

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
    model.save_pretrained(directory, max_shard_size=FILE_BYTES)
    _complete(model.config, directory, source=source)


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
    if model.can_generate():
        model.generation_config.save_pretrained(directory)
    _complete(model.config, directory, source=source)


def _write(writer: WeightsWriter, model: PreTrainedModel, values: dict[str, torch.Tensor]) -> None:
    ignored = set(model._keys_to_ignore_on_save or ())
    for name, each in revert_weight_conversion(model, values).items():
        if name not in ignored:
            writer.add(name, each)


def _clean(model: PreTrainedModel) -> None:
    for stale in ("quantization_config", "_name_or_path"):
        if hasattr(model.config, stale):
            delattr(model.config, stale)


_ONLY_OTHERS_READ = """
    add_full_attention_sink_bias add_swa_attention_sink_bias global_rope_theta layernorm_epsilon local_rope_theta
    mlp_bias n_ctx n_group n_shared_experts partial_rotary_factor post_norm qk_norm rope_local_base_freq rope_scaling
    rope_theta rotary_emb_base rotary_pct route_norm score_func scoring_func swa_head_dim swa_num_attention_heads
    swa_num_key_value_heads swa_rope_theta swa_v_head_dim topk_group topk_method
"""
"""Keys that transformers 5 writes into `rope_parameters` alone, or not at all. Others take defaults, or need them."""

_FLAGS = {
    "hybrid_layer_pattern": ("layer_types", "sliding_attention"),
    "is_moe_layer": ("mlp_layer_types", "sparse"),
    "moe_layer_freq": ("mlp_layer_types", "sparse"),
}
"""Lists of MiMo, EXAONE MoE and MiniMax M3 that say of each block whether it is of a kind: of which, in which list."""

_PATTERN, _KINDS = "hybrid_override_pattern", "layers_block_type"
"""Both say the kinds of the blocks of Nemotron-H; its files have the first one."""
_FIRST = "first_k_dense_replace"
"""How many blocks without experts there are before those that have some."""


def _complete(config: PreTrainedConfig, directory: Path, *, source: Path) -> None:
    """Add what the library does not save, from `source`. Raises `UnsafeModel` for a link elsewhere.

    That is what its config says under other names; and tokenizer, templates and terms as they are, not the card: to
    load and save a tokenizer could change it.
    """
    saved = read_json_file(directory / CONFIG, CONFIG)
    _add_older_names(config, saved, read_config(source))
    (directory / CONFIG).write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
    copy_files((path for path in side_files(source) if path.name not in WRITTEN_FILES), source, directory)
    _equal_permissions(directory)


def _add_older_names(config: PreTrainedConfig, saved: dict[str, object], source: Mapping[str, object]) -> None:
    for name in _ONLY_OTHERS_READ.split():
        if name in source:
            saved.setdefault(name, source[name])
    if source.get("moe_layer_freq") == 1:  # says the same of every block
        saved.setdefault("moe_layer_freq", 1)
    for older, (name, word) in _FLAGS.items():
        flags, kinds = source.get(older), saved.get(name)
        if isinstance(flags, list) and flags and isinstance(flags[0], int) and _are_words(kinds):
            saved[older] = [type(flags[0])(kind == word) for kind in kinds]  # numbers or booleans, as the source has
    kinds = saved.get("mlp_layer_types")
    if _are_words(kinds):
        if (_FIRST in source or _FIRST in saved) and kinds == sorted(kinds):
            saved[_FIRST] = kinds.count("dense")  # the library goes by the list, others by the number
    elif source.get(_FIRST) == 0:
        saved.setdefault(_FIRST, 0)
    for older, name in {**config.attribute_map, "torch_dtype": "dtype"}.items():
        if older in source and name in saved:
            saved.setdefault(older, saved[name])
    for name in source:
        if name not in saved and _is_own_property(config, name):
            saved[name] = getattr(config, name)
    if _PATTERN in saved and _KINDS not in source:
        saved.pop(_KINDS, None)  # in words that SGLang refuses, though it has the pattern
    for name in [name for name, value in saved.items() if _is_infinite(value)]:
        del saved[name]  # not a number of JSON: as the source says it, or as the class does where it says nothing
        if name in source:
            saved[name] = source[name]
    for name, kinds in source.items():
        if _are_words(kinds) and _are_words(kept := saved.get(name)):
            words = dict(zip(remap_legacy_layer_types(kinds) or (), kinds, strict=True))
            saved[name] = [words.get(kind, kind) for kind in kept]
    row = FAMILIES.get(config.model_type)
    for part in config.sub_configs:
        flat = source if row is not None and part == row.part else None  # the class takes its part from them
        of_saved, of_source = saved.get(part), source.get(part, flat)
        if isinstance(of_saved, dict) and isinstance(of_source, Mapping):
            _add_older_names(getattr(config, part), of_saved, of_source)


def _is_infinite(value: object) -> bool:
    """Whether it is, or lists, a number that is not finite, as transformers 5 writes it and nothing else reads it."""
    return (
        "__float__" in value
        if isinstance(value, Mapping)
        else isinstance(value, list) and any(map(_is_infinite, value))
    )


def _is_own_property(config: PreTrainedConfig, name: str) -> bool:
    return isinstance(getattr(type(config), name, None), property) and not hasattr(PreTrainedConfig, name)


def _are_words(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _equal_permissions(directory: Path) -> None:
    """The library lets nobody but the owner read its weights; give all files the permissions of the config."""
    mode = stat.S_IMODE((directory / CONFIG).stat().st_mode)
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(mode)


NEW_TOKENS = 8
FEW_TOKENS = 4
"""For a model that is read again for every token, and for the comparison of logits alone."""
LOGIT_TOLERANCE = {torch.float32: 1e-3, torch.float16: 4e-2, torch.bfloat16: 0.3}
"""Mean difference of logits with and without cache, relative to their standard deviation. With wrong cache slots
it is about 1; from rounding in bfloat16 it is 0.12 in a model that `merge` has broken. Such rounding changes tokens of
a healthy model, so tokens are compared in float32 only."""


@torch.inference_mode()
def verify_saved(
    directory: Path,
    *,
    dtype: torch.dtype,
    blocks: int,
    prompt: torch.Tensor,
    pixels: torch.Tensor | None = None,
    device: str,
    loading: Loading = Loading.WHOLE,
    reading: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> float | None:
    """Load `directory` in float32 and in `dtype`; raises `VerificationFailed`. `prompt` is (positions,) token ids.

    Block by block in `dtype` alone: in float32 the weights take twice the memory, and are read once for each token.

    `pixels` (images, channels, height, width) are for a model of images, which must make finite embeddings of them. A
    context of `reading` is open while a model is loaded. Returns the difference of the logits with and without cache
    in `dtype`, relative to their standard deviation; `None` where there is no cache.
    """
    start = prompt.unsqueeze(0).to(device)

    def opened(dtype: torch.dtype) -> PreTrainedModel:
        with reading():
            model = open_model(directory, dtype=dtype, device=device, loading=loading)
        found = part_config(model.config).num_hidden_layers
        if found != blocks:
            raise VerificationFailed(f"the saved model has {counted(found, 'blocks')}, not {blocks}")
        return model

    def logits_in(dtype: torch.dtype, *, new_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        return _logits(opened(dtype), start, new_tokens=new_tokens)

    try:
        with library_errors("it does not run", fix="its config may not be that of its weights"):
            if pixels is not None:
                if not bool(embeddings(opened(torch.float32), pixels.float().to(device)).isfinite().all()):
                    raise VerificationFailed("the embeddings of the saved model are not finite")
                return None
            is_whole = loading is Loading.WHOLE
            if is_whole or dtype == torch.float32:
                stepwise, whole = logits_in(torch.float32, new_tokens=NEW_TOKENS if is_whole else FEW_TOKENS)
                tokens, uncached = stepwise.argmax(-1), whole.argmax(-1)
                if not torch.equal(tokens, uncached):
                    at = int((tokens != uncached).nonzero()[0, 0])
                    raise VerificationFailed(f"greedy generation with and without cache differs from new token {at} on")
            if dtype != torch.float32:
                stepwise, whole = logits_in(dtype, new_tokens=FEW_TOKENS)
    except BrokenModel as error:  # of our own making: values that are not finite, weights that do not fit
        raise VerificationFailed(f"the saved model cannot be used: {error}") from error
    apart = (stepwise - whole).abs().mean()
    difference = float(apart / whole.std()) if apart else 0.0  # where all logits are the same, 0 of 0 is no difference
    if not difference <= LOGIT_TOLERANCE[dtype]:
        raise VerificationFailed(
            f"logits with and without cache differ by {difference:.2g} of their standard deviation in {dtype}; "
            f"rounding explains at most {LOGIT_TOLERANCE[dtype]:g}"
        )
    return difference


def _logits(model: PreTrainedModel, start: torch.Tensor, *, new_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of each new token after `start` (1, positions), (new, vocabulary) each: with cache, and without.

    With cache the tokens are generated greedily, one by one; without it, the same tokens go through one forward pass.
    If each of them is the likeliest in that pass, too, greedy generation without cache gives the same tokens.
    """
    model.generation_config = GenerationConfig()  # the model's own may ask for sampling or stop words
    output = model.generate(  # type: ignore[operator]  # a method of GenerationMixin, which the type lacks
        start,
        attention_mask=torch.ones_like(start),
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            output_logits=True,
            pad_token_id=0,
            return_dict_in_generate=True,
            use_cache=True,
        ),
    )
    whole = model(input_ids=output.sequences[:, :-1], use_cache=False).logits[0, -new_tokens:]
    return torch.cat(output.logits).float(), whole.float()
