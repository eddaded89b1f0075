"""Check that a saved model works: load it as a user would, and generate with and without the KV cache."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from replaceme_core.engine.model.allocator import release_memory
from replaceme_core.engine.model.lazy_model import open_model
from replaceme_core.errors import BrokenModel, VerificationFailed
from replaceme_core.library_errors import library_errors
from replaceme_core.request.spec import Loading
from replaceme_core.wording import counted

NEW_TOKENS = 8
FEW_TOKENS = 4
"""For a model that is read again for every token, and for the comparison of logits alone."""
LOGIT_TOLERANCE = {torch.float32: 1e-3, torch.float16: 4e-2, torch.bfloat16: 0.3}
"""Mean difference of logits with and without cache, relative to their standard deviation. With wrong cache slots
it is about 1; from rounding in bfloat16 it is 0.12 in a model that `merge` has broken. Such rounding changes tokens of
a healthy model, so tokens are compared in float32 only."""


def verify_saved(
    directory: Path,
    *,
    dtype: torch.dtype,
    blocks: int,
    prompt: torch.Tensor,
    device: str,
    loading: Loading = Loading.WHOLE,
    reading: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> float:
    """Load `directory` in float32 and in `dtype`; raises `VerificationFailed`. `prompt` is (positions,) token ids.

    A context of `reading` is open while a model is loaded. Returns the difference of the logits with and without cache
    in `dtype`, relative to their standard deviation.
    """
    try:
        with library_errors("it does not run", fix="its config may not be that of its weights"):
            return _verify(
                directory, dtype=dtype, blocks=blocks, prompt=prompt, device=device, loading=loading, reading=reading
            )
    except BrokenModel as error:  # of our own making: values that are not finite, weights that do not fit
        raise VerificationFailed(f"the saved model cannot be used: {error}") from error


@torch.inference_mode()
def _verify(
    directory: Path,
    *,
    dtype: torch.dtype,
    blocks: int,
    prompt: torch.Tensor,
    device: str,
    loading: Loading,
    reading: Callable[[], AbstractContextManager[None]],
) -> float:
    new_tokens = NEW_TOKENS if loading is Loading.WHOLE else FEW_TOKENS
    with reading():
        model = open_model(directory, dtype=torch.float32, device=device, loading=loading)
    found = model.config.num_hidden_layers
    if found != blocks:
        raise VerificationFailed(f"the saved model has {counted(found, 'blocks')}, not {blocks}")
    start = prompt.unsqueeze(0).to(device)
    stepwise, whole = _logits(model, start, new_tokens=new_tokens)
    tokens, uncached = stepwise.argmax(-1), whole.argmax(-1)
    if not torch.equal(tokens, uncached):
        at = int((tokens != uncached).nonzero()[0, 0])
        raise VerificationFailed(f"greedy generation with and without cache differs from new token {at} on")
    if dtype != torch.float32:
        del model
        release_memory()  # the readers of a lazily loaded model refer to it, so only the garbage collector frees it
        with reading():
            model = open_model(directory, dtype=dtype, device=device, loading=loading)
        stepwise, whole = _logits(model, start, new_tokens=FEW_TOKENS)  # the tokens are compared above
    difference = float((stepwise - whole).abs().mean() / whole.std())
    if not difference <= LOGIT_TOLERANCE[dtype]:
        raise VerificationFailed(
            f"logits with and without cache differ by {difference:.2g} of their standard deviation in {dtype}; "
            f"rounding explains at most {LOGIT_TOLERANCE[dtype]:g}"
        )
    return difference


def _logits(model: PreTrainedModel, start: torch.Tensor, *, new_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of each new token after `start` (1, positions), (new, vocabulary) each: with cache, and without.

    With cache the tokens are generated greedily, one by one; without it, the same tokens go through one forward pass.
    If each of them is the likeliest in that pass, too, greedy generation without cache gives the same tokens.
    """
    model.generation_config = GenerationConfig()  # the model's own may ask for sampling or stop words
    output = model.generate(  # type: ignore[operator]  # a method of GenerationMixin, which the type lacks
        start,
        attention_mask=torch.ones_like(start),
        generation_config=GenerationConfig(
            do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens, pad_token_id=0, use_cache=True
        ),
        output_logits=True,
        return_dict_in_generate=True,
    )
    whole = model(input_ids=output.sequences[:, :-1], use_cache=False).logits[0, -new_tokens:]
    return torch.cat(output.logits).float(), whole.float()
