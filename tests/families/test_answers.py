"""Answers of every family: prompts of different lengths are padded, and that changes nothing."""

import pytest
import torch

from replaceme_core.engine.evaluation.compare import NEW_TOKENS, OPENINGS, answer
from tests.fixtures.models.tiny import VARIANTS, Variant, byte_tokenizer, tiny_model


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_padding_changes_no_answer(variant: Variant) -> None:
    """Each is what the model alone, without padding, says after that prompt."""
    model, tokenizer = tiny_model(variant), byte_tokenizer()
    found = answer(model, tokenizer)
    assert [one.prompt for one in found] == list(OPENINGS)
    with torch.inference_mode():
        for one in found:
            ids = torch.tensor([tokenizer(one.prompt)["input_ids"]])
            for token in one.tokens[:6]:
                assert int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax()) == token
                ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    assert all(len(one.tokens) <= NEW_TOKENS for one in found)
