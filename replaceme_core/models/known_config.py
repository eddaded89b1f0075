"""A `config.json` reduced to the keys that its model type has.

transformers makes an attribute of any key, and its code, now or later, reads some that only a stranger would set. So
what is loaded, and what the result's own config is made from, has known keys only.
"""

import dataclasses
from collections.abc import Mapping

from transformers import CONFIG_MAPPING

from replaceme_core.families.table import FAMILIES

EARLIER_KEYS = frozenset(
    {
        "head_dim",
        "n_embed",
        "partial_rotary_factor",
        "rope_local_base_freq",
        "rope_scaling",
        "rope_theta",
        "rotary_emb_base",
        "rotary_pct",
        "sliding_window_pattern",
        "torch_dtype",
    }
)
"""Keys of earlier versions that transformers still reads, and one that some classes read without declaring it."""


def keep_known(config: Mapping[str, object]) -> dict[str, object]:
    """The keys of `config` that its model type knows; all of them for a model type that cannot be compressed.

    Keys that begin with an underscore are for transformers itself, which reads files and code by some of them.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        return dict(config)
    kind = CONFIG_MAPPING[model_type]
    declared = {field.name for field in dataclasses.fields(kind)}
    known = declared | kind.attribute_map.keys() | set(kind.attribute_map.values()) | EARLIER_KEYS
    return {
        key: value for key, value in config.items() if key == "model_type" or (key in known and not key.startswith("_"))
    }
