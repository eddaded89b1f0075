"""A model's JSON files with the keys that are known, and no others.

transformers sets every key of a config as an attribute of an object, or acts on it: methods are replaced, kernels and
other files are loaded, outputs change their type. It passes every key of a tokenizer's files to the constructor, which
opens files that some of them name, in any folder.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from replaceme_core.errors import BrokenModel, UnsupportedFamily
from replaceme_core.families.layout import FAMILIES, OWN_FIELDS, Inputs
from replaceme_core.hub.model_config import MOST_LABELS, admit_config, refuse_file_keys
from replaceme_core.wording import shorten

_OF_EVERY_CLASS = ("architectures", "dtype", "model_type", "transformers_version")
_OLDER_NAMES = """
    head_dim n_embed partial_rotary_factor rope_local_base_freq rope_scaling rope_theta rotary_emb_base
    rotary_pct sliding_window_pattern tokenizer_class torch_dtype
"""
"""Keys that are no fields of a class but are read where a config has them; `head_dim` of some classes is."""
_READ_BY_HAND = """
    alignment_intermediate_size attention_other_setting block_ff_dim clip_qkv first_k_dense_replace
    full_attention_interval global_attn_every_n_layers global_head_dim global_rope_theta heads hybrid_override_pattern
    index_skip_topk_offset index_topk_freq index_topk_pattern intermediate_size layers linear_attn_config
    linear_head_dim local_rope_theta ls_init_value
    mamba_chunk_size mamba_conv_bias mamba_d_conv mamba_dt_init_floor mamba_dt_limit mamba_dt_max mamba_dt_min
    mamba_expand mamba_n_groups moe_layer_freq moe_layers_enum mtp_hybrid_override_pattern no_rope_layer_interval
    num_experts num_global_key_value_heads partial_rotary_factors rotary_dim sliding_window sliding_window_size
    sparse_attention_config tie_embedding use_sliding_window width
"""
"""Keys of the files that were released first, which single classes turn into fields with no check of their type."""
_MOST_ENTRIES, _MOST = 1_000, 2**24
"""Of a list or text, and of a number, in one of these: classes make lists as long as they say."""


def known_config(config: Mapping[str, object]) -> dict[str, object]:
    """The entries of an untrusted `config` that its class reads. Raises as `admit_config` does.

    Of a type that is not compressed, which only `replaceme evaluate` reads, all entries.
    """
    if config.get("model_type") not in FAMILIES:
        refuse_file_keys(config)
        return dict(config)
    row = admit_config(config).layout
    lists = (*row.per_layer_lists, OWN_FIELDS)
    found = _known(config, CONFIG_MAPPING[row.model_type], lists=lists)
    if row.part_type is not None and config.get(row.part or "") is None:
        found = _known(config, CONFIG_MAPPING[row.part_type], lists=lists) | found  # the class takes its part from them
    if row.inputs is Inputs.IMAGES:
        found |= _labels(config)
    return found


def _labels(config: Mapping[str, object]) -> dict[str, object]:
    """The entries with number and names of the labels of a classifier. Raises `BrokenModel` for names that are none."""
    found = {name: value for name in ("num_labels", "id2label", "label2id") if (value := config.get(name)) is not None}
    for name, number in (("id2label", 0), ("label2id", 1)):
        names = found.get(name, {})
        if (
            not isinstance(names, Mapping)
            or len(names) > MOST_LABELS
            or not all(str(pair[number]).isdecimal() and isinstance(pair[1 - number], str) for pair in names.items())
        ):
            raise BrokenModel(
                f"config.json gives {name} as {shorten(repr(names), 80)}; it must give each of at most "
                f"{MOST_LABELS:,} labels its name, or each name its number",
                value=name,
            )
    return found


def known_names(kind: type[PreTrainedConfig]) -> set[str]:
    """The keys that the class `kind` reads, other than lists with an entry for each block."""
    of_all = {each.name for each in dataclasses.fields(PreTrainedConfig)}
    own = {each.name for each in dataclasses.fields(kind)} - of_all
    return {
        *own,
        *kind.attribute_map,
        *kind.attribute_map.values(),
        *kind.sub_configs,
        *(f"{name}_dict" for name in kind.sub_configs),
        *_OF_EVERY_CLASS,
        *_OLDER_NAMES.split(),
        *_READ_BY_HAND.split(),
    }


def _known(config: Mapping[str, object], kind: type[PreTrainedConfig], *, lists: Sequence[str]) -> dict[str, object]:
    """The entries that the class `kind` reads, and of its parts those that theirs read.

    Raises `UnsupportedFamily`, and `BrokenModel` for an entry that no class checks and that is not plain.
    """
    known = known_names(kind).union(lists)
    fields = {each.name for each in dataclasses.fields(kind)}
    found = {name: value for name, value in config.items() if name in known}
    for name in _READ_BY_HAND.split():
        if name not in fields and not _is_plain(value := config.get(name)):
            raise BrokenModel(
                f"config.json gives {name} as {shorten(repr(value), 80)}; it must be a number below {_MOST:,}, true, "
                f"false, a text or a list of at most {_MOST_ENTRIES:,}",
                value=name,
            )
    for name, part in kind.sub_configs.items():
        for place in (name, f"{name}_dict"):
            values = config.get(place)
            if isinstance(values, Mapping):
                found[place] = _known(values, _class_of(name, values) if part is AutoConfig else part, lists=lists)
        _check_same(name, found)
    return found


def _check_same(name: str, found: Mapping[str, object]) -> None:
    """Raise `UnsupportedFamily` if a part has values in its older place only, which would count and is not checked."""
    part, older = found.get(name), found.get(f"{name}_dict")
    if not isinstance(older, Mapping):
        return
    known = part if isinstance(part, Mapping) else {}
    for key in older.keys() - _OF_EVERY_CLASS:
        if known.get(key) != older[key]:
            raise UnsupportedFamily(
                f"config.json gives {key} in {name}_dict otherwise than in {name}; write it into {name} and leave "
                f"{name}_dict out",
                value=key,
            )


def _class_of(name: str, part: Mapping[str, object]) -> type[PreTrainedConfig]:
    """The class of a part of a config that may be of any type. Raises `UnsupportedFamily`."""
    model_type = part.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise UnsupportedFamily(
            f"config.json gives {name} the model_type {shorten(repr(model_type), 80)}, which is not known here",
            value=model_type,
        )
    found: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]
    return found


def _is_plain(value: object, *, depth: int = 2) -> bool:
    """Whether it is a value of JSON that is short, and in which lists are within each other `depth` times at most."""
    if isinstance(value, Mapping | list):
        entries = list(value.values()) if isinstance(value, Mapping) else value
        return depth > 0 and len(entries) <= _MOST_ENTRIES and all(_is_plain(one, depth=depth - 1) for one in entries)
    if isinstance(value, str):
        return len(value) <= _MOST_ENTRIES
    return value is None or isinstance(value, bool) or (_is_number(value) and abs(value) < _MOST)


GENERATION_CONFIG = "generation_config.json"
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens", "begin_suppress_tokens")
_NUMBERS = """
    length_penalty max_length max_new_tokens min_length min_new_tokens min_p no_repeat_ngram_size num_beams
    repetition_penalty temperature top_k top_p typical_p
"""
_TRUTHS = ("do_sample", "remove_invalid_values", "renormalize_logits")


def known_generation(config: Mapping[str, object]) -> dict[str, object]:
    """The entries of an untrusted `config` that are used. Raises `BrokenModel` for one that is not of its kind."""
    found: dict[str, object] = {}
    for names, fits, kind in (
        (_TOKENS, _is_tokens, "the number of a token, or a list of these"),
        (_NUMBERS.split(), _is_number, "a number"),
        (_TRUTHS, lambda value: isinstance(value, bool), "true or false"),
    ):
        for name in names:
            value = config.get(name)
            if value is None:
                continue
            if not fits(value):
                raise BrokenModel(
                    f"{GENERATION_CONFIG} gives {name} as {shorten(repr(value), 80)}; it must be {kind}", value=name
                )
            found[name] = value
    return found


def _is_whole(value: object) -> TypeGuard[int]:
    return type(value) is int and abs(value) < 2**31


def _is_tokens(value: object) -> bool:
    return _is_whole(value) or (isinstance(value, list) and all(_is_whole(one) for one in value))


def _is_number(value: object) -> TypeGuard[int | float]:
    return _is_whole(value) or (isinstance(value, float) and abs(value) < 2**31)


_PREPARATION = """
    crop_size data_format do_center_crop do_convert_rgb do_flip_channel_order do_normalize do_pad do_rescale do_resize
    feature_extractor_type image_mean image_processor_type image_std num_channels pad_size resample rescale_factor size
"""


def known_preparation(options: Mapping[str, object]) -> dict[str, object]:
    """The entries of an untrusted `preprocessor_config.json` that are used."""
    return {name: value for name, value in options.items() if name in _PREPARATION.split()}


TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
_OPTIONS = """
    add_bos_token add_eos_token add_prefix_space added_tokens_decoder additional_special_tokens
    chat_template clean_up_tokenization_spaces do_lower_case errors extra_special_tokens legacy
    model_input_names model_max_length padding_side spaces_between_special_tokens split_special_tokens
    tokenizer_class trim_offsets truncation_side unk_id use_default_system_prompt
"""
_TOKEN = "_token"
"""The end of all keys that name one token: `eos_token`."""


def known_options(options: Mapping[str, object]) -> dict[str, object]:
    """The entries of an untrusted `tokenizer_config.json` or `special_tokens_map.json` that are used."""
    known = _OPTIONS.split()
    return {name: value for name, value in options.items() if name in known or name.endswith(_TOKEN)}
