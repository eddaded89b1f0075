"""A tokenizer's JSON files with the keys that describe a tokenizer, and no others.

transformers passes every key of them to the constructor, which opens files that some of them name, in any folder.
"""

from collections.abc import Mapping

TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
_KNOWN = frozenset(
    {
        "add_bos_token",
        "add_eos_token",
        "add_prefix_space",
        "added_tokens_decoder",
        "additional_special_tokens",
        "chat_template",
        "clean_up_tokenization_spaces",
        "do_lower_case",
        "errors",
        "extra_special_tokens",
        "legacy",
        "model_input_names",
        "model_max_length",
        "padding_side",
        "spaces_between_special_tokens",
        "split_special_tokens",
        "tokenizer_class",
        "trim_offsets",
        "truncation_side",
        "unk_id",
        "use_default_system_prompt",
    }
)
_TOKEN = "_token"
"""The end of all keys that name one token: `eos_token`."""


def known_options(options: Mapping[str, object]) -> dict[str, object]:
    """The entries of an untrusted `tokenizer_config.json` or `special_tokens_map.json` that are used."""
    return {name: value for name, value in options.items() if name in _KNOWN or name.endswith(_TOKEN)}
