"""What methods do on families, and answers of every family, whose padding changes nothing."""

import pytest
import torch

from replaceme_core.engine.evaluation.compare import NEW_TOKENS, OPENINGS, answer
from replaceme_core.engine.methods.task import Pruning
from replaceme_core.engine.model.changes import windows
from tests.fixtures.models.tasks import carry_out, make_task, mean_loss, operate, sampled
from tests.fixtures.models.tiny import BLOCKS, BY_NAME, VARIANTS, Variant, byte_tokenizer, tiny_model, token_ids

FIRST_OF_EACH = {variant.model_type: variant for variant in reversed(VARIANTS)}.values()
FIT, HELD_OUT = token_ids(6, 24, seed=1), token_ids(4, 24, seed=2)


@pytest.mark.parametrize("name", ["llama-bias", "gemma3", "gpt2", "falcon-rw", "qwen2-moe", "qwen3-moe-mixed"])
def test_the_differences_of_all_parameters_are_added_to_the_anchor_block(name: str) -> None:
    model, original = tiny_model(BY_NAME[name]), tiny_model(BY_NAME[name])
    task, _ = make_task(model, remove=1, fit=FIT, held_out=HELD_OUT, method={"name": "merge"})
    pruning = carry_out(task)
    (removed,) = pruning.removed
    anchor, gone = (dict(task.block_runner.blocks[block].named_parameters()) for block in (removed - 1, removed))
    assert {change.parameter for change in pruning.changes} == set(anchor)
    result = operate(original, pruning)
    after = dict(make_task(result, fit=FIT, held_out=HELD_OUT)[0].block_runner.blocks[removed - 1].named_parameters())
    for name, parameter in after.items():  # of two blocks, the sum of differences is the second one itself
        torch.testing.assert_close(parameter, gone[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("least_squares", "llama"),
        ("least_squares", "gemma3"),
        ("least_squares", "qwen3-moe"),
        ("cosine", "llama"),
    ],
)
def test_never_worse_than_plain_removal_on_any_window(method: str, name: str) -> None:
    variant = BY_NAME[name]
    fit, held_out = (sampled(tiny_model(variant), count, 24, seed=count) for count in (24, 32))
    earned = 0
    for cut in windows(BLOCKS, 2)[::2]:
        fields = {"drop": list(cut.blocks), "method": {"name": method}}
        pruning = carry_out(make_task(tiny_model(variant), fit=fit, held_out=held_out, **fields)[0])
        (row,) = pruning.candidates
        loss = mean_loss(operate(tiny_model(variant), pruning), held_out)
        plain = mean_loss(operate(tiny_model(variant), Pruning(removed=pruning.removed)), held_out)
        assert row.plain_loss == pytest.approx(plain, rel=0.02)  # exactly, but where half of the tokens left no doubt
        assert loss <= plain * 1.0001
        earned += row.ridge is not None
        if name == "gemma3":
            delta = pruning.folds[0].delta
            assert torch.equal(delta, delta.diagonal().diag())
    assert earned or name == "gemma3", "no map was good for anything: the test shows nothing"


@pytest.mark.parametrize("variant", FIRST_OF_EACH, ids=lambda variant: variant.name)
def test_padding_changes_no_answer(variant: Variant) -> None:
    """Each is what the model alone, without padding, says after that prompt."""
    model, tokenizer = tiny_model(variant), byte_tokenizer()
    found = answer(model, tokenizer, new_tokens=NEW_TOKENS)
    assert [one.prompt for one in found] == list(OPENINGS)
    with torch.inference_mode():
        for one in found:
            ids = torch.tensor([tokenizer(one.prompt)["input_ids"]])
            for token in one.tokens[:6]:
                assert int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax()) == token
                ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    assert all(len(one.tokens) <= NEW_TOKENS for one in found)
