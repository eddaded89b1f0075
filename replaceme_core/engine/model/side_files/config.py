"""A model's `config.json` with the keys that its class has, and no others.

transformers sets every key of a config as an attribute of an object, or acts on it: methods are replaced, kernels and
other files are loaded, outputs change their type.
"""

import dataclasses
from collections.abc import Mapping

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from replaceme_core.families.table import FAMILIES
from replaceme_core.hub.model_config import admit_config, refuse_file_keys

_OF_EVERY_CLASS = ("architectures", "dtype", "model_type", "transformers_version")
_OLDER_NAMES = (
    "head_dim",
    "n_embed",
    "partial_rotary_factor",
    "rope_local_base_freq",
    "rope_scaling",
    "rope_theta",
    "rotary_emb_base",
    "rotary_pct",
    "sliding_window_pattern",
    "tokenizer_class",
    "torch_dtype",
)
"""Keys that are no fields of a class but are read where a config has them; `head_dim` of some classes is."""


def known_config(config: Mapping[str, object]) -> dict[str, object]:
    """The entries of an untrusted `config` that its class reads. Raises as `admit_config` does.

    Of a type that is not compressed, which only `replaceme evaluate` reads, all entries.
    """
    if config.get("model_type") not in FAMILIES:
        refuse_file_keys(config)
        return dict(config)
    row = admit_config(config).layout
    kind = CONFIG_MAPPING[row.model_type]
    of_all = {each.name for each in dataclasses.fields(PreTrainedConfig)}
    own = {each.name for each in dataclasses.fields(kind)} - of_all
    known = {
        *own,
        *kind.attribute_map,
        *kind.attribute_map.values(),
        *row.per_layer_lists,
        *_OF_EVERY_CLASS,
        *_OLDER_NAMES,
    }
    return {name: value for name, value in config.items() if name in known}
