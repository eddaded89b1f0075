"""Log-likelihoods from shared contexts are those of whole texts."""

import random

import pytest
import torch

from benchmarks.questions import Question, likelihoods
from tests.fixtures.models.tiny import tiny_model


def question(seed: int, *, context: int, lengths: tuple[int, ...]) -> Question:
    draw = random.Random(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(64) for _ in range(count))

    return Question(context=ids(context), continuations=tuple(map(ids, lengths)), lengths=lengths, gold=0)


@torch.inference_mode()
def test_a_shared_context_changes_no_likelihood() -> None:
    model = tiny_model()
    questions = [
        question(1, context=7, lengths=(3, 1, 5)),
        question(2, context=4, lengths=(2, 2)),
        question(3, context=7, lengths=(1, 4)),
    ]
    for one, found in zip(questions, likelihoods(model, questions), strict=True):
        for continuation, likelihood in zip(one.continuations, found, strict=True):
            whole = torch.tensor([[*one.context, *continuation]])
            logits = model(input_ids=whole, use_cache=False).logits[0, len(one.context) - 1 : -1].log_softmax(-1)
            wanted = torch.tensor(continuation)
            assert likelihood.nats == pytest.approx(float(logits.gather(1, wanted[:, None]).sum()), abs=1e-4)
            assert likelihood.greedy == bool((logits.argmax(-1) == wanted).all())
