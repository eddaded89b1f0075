"""What is read step by step, whatever cache a model takes, gives the logits of one pass over all of it."""

import pytest
import torch

from benchmarks.harness import tiny_models
from replaceme_core.engine.model.decoding import Decoding

PROMPT, LENGTH = 10, 15


@pytest.mark.parametrize(
    "model_type",
    [
        "llama",
        "bamba",  # its positions begin at 0 where none are given
        "recurrent_gemma",  # it makes a cache that it does not return
        "minimax",  # it takes a class of cache of its own
        "mamba2",  # it takes no positions
        "qwen2_5_vl",  # of a text, one position stands for three
    ],
)
@torch.inference_mode()
def test_the_logits_are_those_of_one_pass(model_type: str) -> None:
    model = tiny_models.built(tiny_models.tiny_config(model_type, **tiny_models.fitting_sizes(model_type)))
    tokens = tiny_models.tokens()[:, :LENGTH]
    whole = model(input_ids=tokens, use_cache=False).logits
    decoding = Decoding(model=model)
    for start, end in [(0, PROMPT), *((number, number + 1) for number in range(PROMPT, LENGTH))]:
        found, wanted = decoding.read(tokens[:, start:end]), whole[:, end - 1]
        assert float((found - wanted).norm() / wanted.norm()) < 3e-3, f"token {end}"
    assert decoding.cache_bytes() > 0
