"""The held-out sequences that are made for judging: passages that repeat, and short questions; and what counts in each.

Perplexity on ordinary text hardly shows whether a model still copies what it has read, or still knows facts.
"""

import math
from dataclasses import replace
from importlib import resources
from itertools import zip_longest

import torch
from transformers import PreTrainedTokenizerBase

from replaceme_core.engine.text.drawing import TokenSet, with_source
from replaceme_core.engine.text.tokens import beginning_of_text
from replaceme_core.request.defaults import PANEL_POSITIONS, PANEL_STEP
from replaceme_core.request.resolve import ResolvedCalibration

PASSAGE = 128
"""Tokens of a repeated passage, about."""

REPEATED = "repeated passages"
QUESTIONS = "questions"
"""The names of the sources in reports."""


def with_panel(
    tokens: TokenSet, calibration: ResolvedCalibration, tokenizer: PreTrainedTokenizerBase, *, prefix: int
) -> TokenSet:
    """`tokens` with the sequences of repeated passages that `calibration` asks for, and those that judge.

    Fitted ones are made of fitted sequences, held-out ones of held-out sequences of every source in turn. Each begins
    with the first `prefix` tokens of the sequence that it is made of. Of a sequence with other tokens, the tokenizer's
    unknown token does not count: no model was trained to predict it.
    """
    scored = torch.zeros_like(tokens.held_out, dtype=torch.bool)
    scored[:, 1:PANEL_POSITIONS:PANEL_STEP] = True
    tokens = replace(tokens, held_out_scored=scored)
    fitted = tokens.fit[: math.ceil(calibration.repeating / 2)]
    fit = repeat_passages(fitted, prefix=prefix).flatten(0, 1)[: calibration.repeating]
    count = calibration.judging if calibration.repeating else 0
    given = _in_turn(tokens.held_out, tokens.held_out_sources)[:count]
    held_out = repeat_passages(given, prefix=prefix)[:, 0]
    if len(fit) or len(held_out):
        repeats = _repeats(held_out, prefix=prefix)
        repeats[:, PANEL_POSITIONS:] = False
        tokens = with_source(tokens, REPEATED, fit=fit, held_out=held_out, scored=repeats, seed=calibration.seed)
    questions, answers = question_sequences(tokenizer, length=tokens.fit.shape[1], most=count)
    if len(questions):
        nothing = tokens.fit[:0]
        tokens = with_source(tokens, QUESTIONS, fit=nothing, held_out=questions, scored=answers, seed=calibration.seed)
    counted, unknown = tokens.held_out_scored, tokenizer.unk_token_id
    if counted is None or unknown in (None, tokenizer.eos_token_id, tokenizer.bos_token_id):
        return tokens
    known = counted & (tokens.held_out != unknown)
    return replace(tokens, held_out_scored=torch.where(known.any(dim=1, keepdim=True), known, counted))


def _in_turn(sequences: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """The first sequence of each source, then the second of each, and so on."""
    by_source = (sequences[sources == source] for source in sources.unique())
    return torch.stack([one for turn in zip_longest(*by_source) for one in turn if one is not None])


def repeat_passages(sequences: torch.Tensor, *, prefix: int) -> torch.Tensor:
    """Token ids (sequences, 2, length) from (sequences, length): the passages of each half, each of them twice.

    >>> repeat_passages(torch.tensor([[0, 1, 2, 3, 4]]), prefix=1)
    tensor([[[0, 1, 2, 1, 2],
             [0, 3, 4, 3, 4]]])
    """
    body = sequences[:, prefix:]
    width = body.shape[1]
    passages, size = _passages(width)
    halves = torch.stack([body[:, : passages * size], body[:, -passages * size :]], dim=1)
    twice = halves.unflatten(-1, (passages, size)).repeat(1, 1, 1, 2).flatten(2)[..., :width]
    return torch.cat([sequences[:, None, :prefix].expand(-1, 2, -1), twice], dim=-1)


def _passages(width: int) -> tuple[int, int]:
    """How many passages are in `width` tokens, each twice, and their size."""
    passages = max(1, round(width / (2 * PASSAGE)))
    return passages, math.ceil(width / (2 * passages))


def _repeats(sequences: torch.Tensor, *, prefix: int) -> torch.Tensor:
    """Of sequences of repeated passages: which tokens are in a passage's second occurrence."""
    _, size = _passages(sequences.shape[1] - prefix)
    places = torch.arange(sequences.shape[1]) - prefix
    return ((places >= 0) & (places % (2 * size) >= size)).expand(sequences.shape).clone()


def question_sequences(
    tokenizer: PreTrainedTokenizerBase, *, length: int, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """At most `most` sequences of short questions with their answers, a line each; and which tokens answer.

    Both (sequences, length). The questions before one show the model what is asked, so a base model answers too. Those
    that do not fill a sequence are dropped.
    """
    begin = beginning_of_text(tokenizer)
    ends = tokenizer("\n", add_special_tokens=False, verbose=False)["input_ids"]
    sequences, marks = [], []
    ids, answers = list(begin), [False] * len(begin)
    file = resources.files("replaceme_core.engine.text") / "texts" / "questions.tsv"
    for line in file.read_text(encoding="utf-8").splitlines():
        question, _, answer = line.replace("\\n", "\n").partition("\t")
        asked = tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"]
        whole = tokenizer(question + answer, add_special_tokens=False, verbose=False)["input_ids"]
        same = next((place for place, pair in enumerate(zip_longest(asked, whole)) if pair[0] != pair[1]), len(whole))
        ids += [*whole, *ends]
        answers += [*(place >= same for place in range(len(whole))), *(False for _ in ends)]
        if len(ids) >= length:
            if any(answers[1:length]):
                sequences.append(ids[:length])
                marks.append(answers[:length])
            ids, answers = list(begin), [False] * len(begin)
    return (
        torch.tensor(sequences[:most], dtype=torch.long).reshape(-1, length),
        torch.tensor(marks[:most], dtype=torch.bool).reshape(-1, length),
    )
