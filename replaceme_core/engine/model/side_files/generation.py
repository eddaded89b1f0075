"""A model's `generation_config.json` with the keys that every transformers version reads alike, and checked values."""

from collections.abc import Mapping
from typing import TypeGuard

from replaceme_core.errors import BrokenModel
from replaceme_core.json_values import shorten

GENERATION_CONFIG = "generation_config.json"
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens", "begin_suppress_tokens")
_NUMBERS = (
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
)
_TRUTHS = ("do_sample", "remove_invalid_values", "renormalize_logits")


def known_generation(config: Mapping[str, object]) -> dict[str, object]:
    """The entries of an untrusted `config` that are used. Raises `BrokenModel` for one that is not of its kind."""
    found: dict[str, object] = {}
    for names, fits, kind in (
        (_TOKENS, _is_tokens, "the number of a token, or a list of these"),
        (_NUMBERS, _is_number, "a number"),
        (_TRUTHS, lambda value: isinstance(value, bool), "true or false"),
    ):
        for name in names:
            value = config.get(name)
            if value is None:
                continue
            if not fits(value):
                raise BrokenModel(
                    f"{GENERATION_CONFIG} gives {name} as {shorten(repr(value), 80)}; it must be {kind}",
                    field="model",
                    value=name,
                )
            found[name] = value
    return found


def _is_whole(value: object) -> TypeGuard[int]:
    return type(value) is int and abs(value) < 2**31


def _is_tokens(value: object) -> bool:
    return _is_whole(value) or (isinstance(value, list) and all(_is_whole(one) for one in value))


def _is_number(value: object) -> bool:
    return _is_whole(value) or (isinstance(value, float) and abs(value) < 2**31)
