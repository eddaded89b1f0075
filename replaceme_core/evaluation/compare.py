"""The source model and the pruned one beside each other: on every text apart, and in what they answer.

A model that is pruned on one kind of text may be good on that and poor elsewhere, so it is also measured on text that
took no part: the model's own, and the built-in general text.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from replaceme_core.calibration.builtin import PYDOC, builtin_documents
from replaceme_core.calibration.packing import TokenSet, encode, pack
from replaceme_core.calibration.self_generated import generate_sequences
from replaceme_core.calibration_spec import GENERAL, SELF_GENERATED
from replaceme_core.evaluation.answers import Answer, answer
from replaceme_core.evaluation.measure import Divergence, Measurement, Subject, measure
from replaceme_core.fields import BUILTIN_PREFIX

ELSEWHERE = 4
"""Sequences of each text that is not part of the calibration."""
FIRST_PART = 0.6
"""Of the time, for the first text."""


@dataclass(frozen=True, kw_only=True)
class TextResult:
    """Perplexities on `tokens` predictions of one text, before and after.

    `divergence` is the mean Kullback-Leibler divergence of the pruned model's next-token distribution from the source
    model's in nats, `agreement` the share of predictions whose most likely token is the same.
    """

    name: str
    tokens: int
    before: float
    after: float
    divergence: float
    agreement: float

    @property
    def ratio(self) -> float:
        """How many times that of the source model."""
        return self.after / self.before

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "ratio": self.ratio}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`before` and `after` are on the first text, which `texts` begins with.

    `answers_before` and `answers_after` are empty where no model was asked.
    """

    before: Measurement
    after: Measurement
    texts: Sequence[TextResult]
    answers_before: Sequence[Answer] = ()
    answers_after: Sequence[Answer] = ()


def compare(
    before: Subject,
    after: Subject,
    tokens: TokenSet,
    tokenizer: PreTrainedTokenizerBase,
    *,
    generates: bool,
    seed: int,
    advance: Callable[[float], None],
) -> Comparison:
    """Both models on the same sequences in turn, and on the same prompts.

    Without `generates` no model is asked and none writes: one that is read block by block would be read from disk for
    every token. Text of the source model's own comes from another seed than that of its calibration. Raises
    `NumericalFailure` where a perplexity is not finite.
    """
    apart = Divergence()
    first = measure(
        [before, after],
        tokens.measure_of_first_text(),
        divergence=apart,
        advance=lambda part: advance(FIRST_PART * part),
    )
    texts = _texts(tokens, tokenizer)
    if generates:
        texts[SELF_GENERATED] = generate_sequences(
            before.model,
            tokenizer,
            count=ELSEWHERE,
            length=tokens.measure.shape[1],
            seed=seed + 1,
            advance=lambda _: None,
        )
    found = [_result(tokens.sources[int(tokens.measure_sources[0])], first, apart)]
    for number, (name, sequences) in enumerate(texts.items(), start=1):
        pair = [replace(subject, loss=0.0, speeds=[]) for subject in (before, after)]
        apart = Divergence()
        found.append(_result(name, measure(pair, sequences, divergence=apart), apart))
        advance(FIRST_PART + (1 - FIRST_PART) * number / len(texts))
    result = Comparison(before=first[0], after=first[1], texts=found)
    if not generates:
        return result
    old, new = (answer(subject.model, tokenizer) for subject in (before, after))
    return replace(result, answers_before=old, answers_after=new)


def _texts(tokens: TokenSet, tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """The texts after the first one, by name: the others of the calibration, and the built-in one if it has none."""
    first = int(tokens.measure_sources[0])
    texts = {
        tokens.sources[source]: tokens.measure[tokens.measure_sources == source]
        for source in tokens.measure_sources.unique().tolist()
        if source != first
    }
    if not any(name.startswith(BUILTIN_PREFIX) and name != PYDOC for name in tokens.sources):
        spread = _general(tokenizer, length=tokens.measure.shape[1])
        if len(spread):
            texts[GENERAL] = spread
    return texts


def _general(tokenizer: PreTrainedTokenizerBase, *, length: int) -> torch.Tensor:
    """`ELSEWHERE` sequences (sequences, length), spread over the built-in text; fewer if it does not fill so many."""
    encoded = encode(builtin_documents(GENERAL), tokenizer)
    sequences = pack(encoded, tokenizer, length=length, limit=10_000).sequences
    return sequences[:: max(1, len(sequences) // ELSEWHERE)][:ELSEWHERE]


def _result(name: str, pair: Sequence[Measurement], apart: Divergence) -> TextResult:
    old, new = pair
    return TextResult(
        name=name,
        tokens=old.tokens,
        before=old.perplexity,
        after=new.perplexity,
        divergence=apart.mean_nats,
        agreement=apart.agreement,
    )
