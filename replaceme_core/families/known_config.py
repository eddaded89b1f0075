"""A `config.json` reduced to the keys that its model type has.

transformers makes an attribute of any key, and its code, now or later, reads some that only a stranger would set. So
what is loaded, and what the result's own config is made from, has known keys only.
"""

from collections.abc import Collection, Mapping

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


def keep_known(config: Mapping[str, object], declared: Collection[str]) -> dict[str, object]:
    """The entries of `config` whose keys the class of its model type has `declared`, or had in earlier versions.

    Keys that begin with an underscore are for transformers itself, which reads files and code by some of them.
    """
    known = {"model_type", *declared, *EARLIER_KEYS}
    return {key: value for key, value in config.items() if key in known and not key.startswith("_")}
