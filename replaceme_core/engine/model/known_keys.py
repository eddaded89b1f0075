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
from replaceme_core.families.layout import FAMILIES, OWN_FIELDS
from replaceme_core.hub.model_config import admit_config, refuse_file_keys
from replaceme_core.wording import shorten

_OF_EVERY_CLASS = ("architectures", "dtype", "model_type", "transformers_version")
_OLDER_NAMES = """
    head_dim n_embed partial_rotary_factor rope_local_base_freq rope_scaling rope_theta rotary_emb_base
    rotary_pct sliding_window_pattern tokenizer_class torch_dtype
"""
"""Keys that are no fields of a class but are read where a config has them; `head_dim` of some classes is."""


def known_config(config: Mapping[str, object]) -> dict[str, object]:
    """The entries of an untrusted `config` that its class reads. Raises as `admit_config` does.

    Of a type that is not compressed, which only `replaceme evaluate` reads, all entries.
    """
    if config.get("model_type") not in FAMILIES:
        refuse_file_keys(config)
        return dict(config)
    row = admit_config(config).layout
    return _known(config, CONFIG_MAPPING[row.model_type], lists=(*row.per_layer_lists, OWN_FIELDS))


def _known(config: Mapping[str, object], kind: type[PreTrainedConfig], *, lists: Sequence[str]) -> dict[str, object]:
    """The entries that the class `kind` reads, and of its parts those that theirs read. Raises `UnsupportedFamily`."""
    of_all = {each.name for each in dataclasses.fields(PreTrainedConfig)}
    own = {each.name for each in dataclasses.fields(kind)} - of_all
    known = {
        *own,
        *kind.attribute_map,
        *kind.attribute_map.values(),
        *kind.sub_configs,
        *lists,
        *_OF_EVERY_CLASS,
        *_OLDER_NAMES.split(),
    }
    found = {name: value for name, value in config.items() if name in known}
    for name, part in kind.sub_configs.items():
        values = config.get(name)
        if isinstance(values, Mapping):
            found[name] = _known(values, _class_of(name, values) if part is AutoConfig else part, lists=lists)
    return found


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


GENERATION_CONFIG = "generation_config.json"
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens", "begin_suppress_tokens")
_NUMBERS = """
    length_penalty max_length max_new_tokens min_length min_new_tokens min_p no_repeat_ngram_size
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


def _is_number(value: object) -> bool:
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
