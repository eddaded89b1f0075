"""The sequences that judge: passages that repeat and short questions, and which of their tokens count."""

from dataclasses import replace

import pytest
import torch

from replaceme_core.engine.text.drawing import TokenSet
from replaceme_core.engine.text.panel import (
    PASSAGE,
    QUESTIONS,
    REPEATED,
    question_sequences,
    repeat_passages,
    with_panel,
)
from replaceme_core.request.defaults import PANEL_POSITIONS, PANEL_STEP
from replaceme_core.request.resolve import ResolvedCalibration
from tests.fixtures.models.activations import of_one_source
from tests.fixtures.models.tiny import byte_tokenizer

LENGTH = 40


def calibration(samples: int, repeated: float | None) -> ResolvedCalibration:
    fields = {"dataset": "org/a", "self_generated": 0.0, "samples": samples, "max_length": LENGTH}
    return ResolvedCalibration.model_validate({**fields, "repeated": repeated})


def numbered(fit: int, held_out: int) -> TokenSet:
    """Each token once."""
    ids = torch.arange((fit + held_out) * LENGTH).reshape(-1, LENGTH)
    return of_one_source(fit=ids[:fit], held_out=ids[fit:], measure=ids[:0])


def made(tokens: TokenSet, *, samples: int = 64, repeated: float | None = 0.375, prefix: int = 1) -> TokenSet:
    return with_panel(tokens, calibration(samples, repeated), byte_tokenizer(), prefix=prefix)


@pytest.mark.parametrize("length", [8, 65, 4 * PASSAGE, 600])
@pytest.mark.parametrize("prefix", [0, 2])
def test_passages_fill_every_length_and_each_follows_itself(length: int, prefix: int) -> None:
    given = torch.arange(length)[None]
    found = repeat_passages(given, prefix=prefix)
    assert found.shape == (1, 2, length)
    assert torch.equal(found[..., :prefix], given[:, None, :prefix].expand(-1, 2, -1))
    for body in found[0, :, prefix:]:
        again = [token in body[:place] for place, token in enumerate(body)]
        assert sum(again) == pytest.approx(len(body) / 2, abs=PASSAGE / 2)
        assert body[1] == body[0] + 1, "a passage is text in its order"
        assert again.index(True) <= 1.5 * PASSAGE, "a long text has several"


def test_passages_of_fitted_sequences_are_spread_over_the_fit() -> None:
    tokens = numbered(fit=56, held_out=8)
    found = made(tokens)
    assert found.sources == ("text", REPEATED, QUESTIONS)
    assert [int((found.fit_sources == source).sum()) for source in (0, 1, 2)] == [56, 21, 0], "no question is fitted"
    passages = found.fit[found.fit_sources == 1]
    assert torch.isin(passages, tokens.fit).all()
    assert all(len(row.unique()) < LENGTH for row in passages)
    assert len(passages.unique(dim=0)) == 21
    assert torch.equal(found.fit[found.fit_sources == 0].sort(dim=0).values, tokens.fit)
    assert 0 < int(found.fit_sources[:20].sum()) < 20
    assert torch.equal(found.fit, made(tokens).fit)


def test_passages_of_held_out_sequences_of_every_source_judge() -> None:
    tokens = replace(
        numbered(fit=56, held_out=8), sources=("a", "b"), held_out_sources=torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
    )
    found = made(tokens)
    assert found.sources == ("a", "b", REPEATED, QUESTIONS)
    assert torch.equal(found.held_out[found.held_out_sources < 2].sort(dim=0).values, tokens.held_out)
    passages = found.held_out[found.held_out_sources == 2]
    given = [tokens.held_out[number] for number in (0, 7, 1, 2)]  # the first of each, then more of the first
    assert [int(row[0]) for row in passages] == [int(row[0]) for row in given], "the beginning of the text"
    for row, wanted in zip(passages, given, strict=True):
        assert set(row.tolist()) < set(wanted.tolist())


def test_what_counts_is_text_at_its_beginning_what_repeats_and_what_answers() -> None:
    found = made(numbered(fit=56, held_out=8))
    assert found.held_out_scored is not None
    for number in range(3):
        rows, counts = (each[found.held_out_sources == number] for each in (found.held_out, found.held_out_scored))
        for row, scored in zip(rows.tolist(), counts.tolist(), strict=True):
            if number == 0:
                assert scored == [1 <= place < PANEL_POSITIONS and place % PANEL_STEP == 1 for place in range(LENGTH)]
            elif number == 1:
                assert scored == [token in row[:place] for place, token in enumerate(row)]
            else:
                assert any(scored)


def test_tokens_that_the_tokenizer_does_not_know_do_not_count_beside_others() -> None:
    tokens, tokenizer = numbered(fit=56, held_out=8), byte_tokenizer()
    tokenizer.add_special_tokens({"unk_token": "<unk>"})
    unknown = tokenizer.unk_token_id
    tokens.held_out[0, 1 : 1 + 2 * PANEL_STEP] = unknown
    tokens.held_out[1] = unknown
    found = with_panel(tokens, calibration(64, 0.375), tokenizer, prefix=1)
    scored, usual = found.held_out_scored, made(tokens).held_out_scored
    assert scored is not None and usual is not None
    different = scored != usual
    assert different.any(), "the unknown tokens count without this"
    assert (found.held_out[different] == unknown).all()
    mixed = (found.held_out != unknown).any(dim=1)
    assert not (scored & (found.held_out == unknown))[mixed].any()
    assert scored.any(dim=1).all(), "a sequence without any other token is judged by these"


@pytest.mark.parametrize(("samples", "share"), [(64, None), (64, 0.0), (2, 0.375)])
def test_without_repeated_passages_only_the_text_judges(samples: int, share: float | None) -> None:
    tokens = numbered(fit=4, held_out=2)
    found = made(tokens, samples=samples, repeated=share, prefix=0)
    assert found.sources == tokens.sources
    assert torch.equal(found.fit, tokens.fit)
    assert torch.equal(found.held_out, tokens.held_out)


def test_questions_come_with_their_answers() -> None:
    tokenizer = byte_tokenizer()
    sequences, answers = question_sequences(tokenizer, length=512, most=3)
    assert sequences.shape == answers.shape == (3, 512)
    text = tokenizer.decode(sequences[0].tolist())
    lines = text.split("\n")
    assert "The capital of Germany is Berlin" in lines
    answered = tokenizer.decode(sequences[0][answers[0]].tolist())
    assert answered.startswith(" Berlin")
    assert 0.05 < float(answers.float().mean()) < 0.4


def test_sequences_too_short_for_a_question_have_none() -> None:
    sequences, answers = question_sequences(byte_tokenizer(), length=2, most=5)
    assert len(sequences) == len(answers)
    assert all(row.any() for row in answers)
